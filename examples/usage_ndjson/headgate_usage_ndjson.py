"""Every usage record as one line of JSON, synced to disk, each once: `$USAGE_NDJSON`, else `usage.ndjson`.

`pip install ./examples/usage_ndjson`, and in headgate.toml: `plugins = { enable = ["ndjson"] }`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import msgspec
from headgate_plugin_api import UsageRecord, hookimpl

HEADGATE_API = 1


@cache
def opened() -> tuple[BinaryIO, set[str]]:
    """The file, and whose lines it has; a line that a crash cut off is taken away."""
    path = Path(os.environ.get("USAGE_NDJSON", "usage.ndjson"))
    path.touch()
    file = path.open("rb+")
    known, end = set(), 0
    for line in file:
        if line.endswith(b"\n"):
            known.add(msgspec.json.decode(line)["request_id"])
            end += len(line)
    file.truncate(end)
    file.seek(end)
    return file, known


@hookimpl
def headgate_usage_recorded(records: Sequence[UsageRecord]) -> None:
    """Returning says that these are kept: not before they are on disk. Some may have come before."""
    file, known = opened()
    new = [record for record in records if record.request_id not in known]
    try:
        file.writelines(msgspec.json.encode(record) + b"\n" for record in new)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        opened.cache_clear()  # what there is of it is found out when the file is opened again
        with suppress(OSError):
            file.close()
        raise
    known.update(record.request_id for record in new)

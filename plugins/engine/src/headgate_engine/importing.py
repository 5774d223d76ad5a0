"""`python -m headgate_engine.importing --job FILE`: one import, in a process that can be thrown away.

FILE is a JSON `ImportJob`. Standard output carries one JSON object a line and nothing else: progress as
`{"fraction": 0.3, "what": "..."}`, last either `{"manifest": {...}}` (exit code 0) or `{"error": "..."}` (exit
code 1). Whatever the libraries print goes to standard error. May import discovery, hub and the plugin API.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from headgate_plugin_api import ImportJob, LoadFailed, LoadProgress, Manifest

from headgate_engine.discovery import find_importers
from headgate_engine.hub import is_hub_source, resolve

Report = Callable[[LoadProgress], None]


def run_job(job: ImportJob, report: Report) -> Manifest:
    """Fetch the source if it lies on a hub, then hand the job to the first importer that accepts it.

    Raises:
        LoadFailed: No such plugin or importer, or the import failed.
    """
    importers = find_importers(job.backend)
    if not importers:
        raise LoadFailed(f"backend {job.backend!r} brings no importers")
    local = job
    if is_hub_source(job.source):
        local = msgspec.structs.replace(job, source=str(resolve(job.source, report)), origin=job.source)
    for importer in importers:
        if importer.accepts(local):
            return importer.run(local, report)
    raise LoadFailed(f"{job.source}: no importer of backend {job.backend!r} knows this kind of source")


def main() -> int:
    """Run the job that the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m headgate_engine.importing", description="Import one model.")
    parser.add_argument("--job", type=Path, required=True, help="what to import (JSON)")
    path: Path = parser.parse_args().job
    say = _own_stdout()
    try:
        job = msgspec.json.decode(path.read_bytes(), type=ImportJob)
    except (OSError, msgspec.DecodeError) as error:
        say({"error": f"{path}: {error}"})
        return 1
    try:
        manifest = run_job(job, lambda progress: say(msgspec.to_builtins(progress)))
    except LoadFailed as error:
        say({"error": error.message})
        return 1
    except Exception as error:  # noqa: BLE001 - an importer's bug must reach the operator as a line too
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})
        return 1
    say({"manifest": msgspec.to_builtins(manifest)})
    return 0


def _own_stdout() -> Callable[[Mapping[str, Any]], None]:
    """Keep standard output for our lines: what anything else writes there, native code too, goes to stderr."""
    sys.stdout.flush()
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(document: Mapping[str, Any]) -> None:
        lines.write(msgspec.json.encode(document) + b"\n")

    return say


if __name__ == "__main__":
    sys.exit(main())

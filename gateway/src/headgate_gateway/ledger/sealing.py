"""The daily seal: the day's audit, run in a process of its own, and what it came to handed to the ledger to keep.

After each UTC midnight, and at a start after days without one, the ledger starts that process. It has the lowest
priority and reads slice by slice, so that no batch waits for it; what it found comes back as ordinary commands,
one small batch for each part. Where the audit finds a difference there is no seal, and the log says so.
May import derivation, history, admin_client and settings.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Final

from headgate_gateway import settings as config
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.clock import Clock
from headgate_gateway.domain.commands import Done
from headgate_gateway.domain.keeping import KeepSeal
from headgate_gateway.ledger.admin_client import admin_client
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.derivation import Derivation
from headgate_gateway.ledger.history import History, SqliteHistory
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.seal import parts_of
from headgate_gateway.ledger.store.read_only import open_readonly
from headgate_gateway.telemetry import logs

DAY_US: Final = 86_400 * 1_000_000

LOOK_S: Final = 10.0
"""How long a database may take to say whether a seal is due; a stop of the ledger waits for the answer."""

LOOK_AGAIN_S: Final = 3600.0
"""After a seal could not be made; and a clock may be set."""

LONGEST_S: Final = 86_400.0
"""After so long the process is ended: a day's audit takes a fraction of a day, or hangs."""

_log = logging.getLogger(__name__)


def due(history: History, now_us: int) -> bool:
    """Whether there is history of days before today (UTC) that no seal covers."""
    since = history.unsealed_since()
    return since is not None and since // DAY_US < now_us // DAY_US


def make(history: History, key: bytes) -> list[KeepSeal]:
    """Audit what came after the last seal, and say what the ledger must keep of it.

    Args:
        history: What to read.
        key: From `chain.chain_key`.

    Raises:
        Differs: There is a difference, so that there is nothing to be sealed.
    """
    derivation = Derivation(history, key)
    derivation.everything(full=False)
    return list(parts_of(derivation.sealed(), (history.last_seal(2**62) or 0) + 1, key))


@contextlib.contextmanager
def opened(settings: config.Settings, limit_s: float | None = None) -> Generator[tuple[History, bytes]]:
    """The history of a deployment, and the key of its chains; of a database for so long, or for an audit."""
    key = chain_key(config.pepper(settings))
    layout = settings.layout
    url = config.database(settings)
    if url is None:
        with contextlib.closing(open_readonly(layout.store)) as db:
            yield SqliteHistory(db, key, layout.chain_head), key
    else:
        from headgate_gateway.ledger.postgres.audit import AUDIT_S
        from headgate_gateway.ledger.postgres.history import PostgresHistory
        from headgate_gateway.ledger.postgres.read_only import read_only

        with read_only(url, limit_s or AUDIT_S) as db:
            yield PostgresHistory(db, key, layout.data_dir), key


# -- in the ledger's process


async def keep_sealing(settings: config.Settings, snapshot: Path, clock: Clock) -> None:
    """Have a seal made whenever one is due, for as long as the ledger serves.

    Args:
        settings: The ledger's.
        snapshot: The file that they were read from.
        clock: The ledger's.
    """
    while True:
        try:
            if await asyncio.to_thread(_due_in, settings, clock):
                await _run_apart(snapshot)
        except Exception:  # noqa: BLE001 - a ledger without a seal is still a ledger
            _log.exception("no seal was made")
        midnight_s = (DAY_US - clock.now_us() % DAY_US) / 1_000_000
        await asyncio.sleep(min(midnight_s + 1.0, LOOK_AGAIN_S))


def _due_in(settings: config.Settings, clock: Clock) -> bool:
    with opened(settings, LOOK_S) as (history, _):
        return due(history, clock.now_us())


async def _run_apart(snapshot: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headgate_gateway.ledger.sealing", "--settings", str(snapshot),
        stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LONGEST_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# -- in the process of its own


async def _hand_over(settings: config.Settings, parts: list[KeepSeal]) -> None:
    async with admin_client(settings.layout, actor="seal") as client:
        for part in parts:
            result = await client.command(part)
            if not isinstance(result, Done):
                raise ConnectionError(f"the ledger did not keep part {part.part} of seal {part.seal}: {result}")


def _end_with_the_ledger() -> None:
    while os.read(0, 4096):
        continue
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    """Make one seal, when one is due.

    Returns:
        The exit code: 0 when it was made or none is due, 1 when there is a difference or the ledger went away.
    """
    parser = argparse.ArgumentParser(prog="headgate-seal")
    parser.add_argument("--settings", type=Path, required=True)
    settings = config.read_snapshot(parser.parse_args(arguments).settings)
    logs.configure(settings.log, "seal")
    threading.Thread(target=_end_with_the_ledger, daemon=True).start()
    os.nice(19)
    now_us = SystemClock().now_us()
    try:
        with opened(settings) as (history, key):
            parts = make(history, key) if history.alone() and due(history, now_us) else []
            asyncio.run(_hand_over(settings, parts))
    except Differs as difference:
        _log.error("no seal is made, because the audit finds a difference: %s", difference)
        return 1
    except Exception:  # noqa: BLE001 - whatever it was, the next look makes another try
        _log.exception("no seal was made")
        return 1
    if parts:
        _log.info("seal %d was made, in %d parts", parts[0].seal, len(parts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

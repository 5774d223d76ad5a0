"""The ledger's process: lock, secrets, store, socket, and what ends it.

May import this room, settings and price_list.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Final

from headgate_gateway import crashpoints, descriptors, garbage, parent
from headgate_gateway import settings as config
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain import keys
from headgate_gateway.domain.commands import Rejected
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import sealing, secrets, wire
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.core import Core, Speaker
from headgate_gateway.ledger.history import noted
from headgate_gateway.ledger.reserve import Reserve
from headgate_gateway.ledger.server import VISITORS, Books, LedgerServer
from headgate_gateway.ledger.store import StoreBroken, StoreFailed
from headgate_gateway.ledger.store.read_only import open_readonly
from headgate_gateway.ledger.store.sqlite import SqliteStore
from headgate_gateway.plugins import PluginError
from headgate_gateway.price_list import configured_prices
from headgate_gateway.telemetry import logs

LOCK_WAIT_S: Final = 5.0
"""A ledger that is just ending may still hold the lock."""

ORPHANED_S: Final = 2.0
"""How long the ledger waits for its clients to go when the supervisor has died."""

DESCRIPTORS: Final = 1_024
"""As many the ledger lets itself have, if it may: each worker is one, and each command while it runs."""

KEPT: Final = 48
"""Descriptors of no connection: the store's files or sessions, a flight file that is read, a seal's pipes."""

FEWEST_VISITORS: Final = 4

_log = logging.getLogger(__name__)


class AlreadyServed(Exception):
    """Another ledger has this data folder."""


@contextlib.contextmanager
def locked(layout: Layout, *, wait_s: float = LOCK_WAIT_S) -> Generator[None]:
    """Hold the lock that makes this process the folder's one ledger.

    Raises:
        AlreadyServed: Another process holds it, and still does after `wait_s`.
    """
    layout.data_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    clock = SystemClock()
    until = clock.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock.monotonic() >= until:
                    raise AlreadyServed(f"{layout.data_dir} is served by another headgate process") from None
                signal.sigtimedwait([], 0.05)
        yield
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def serving(
    settings: config.Settings, layout: Layout, *, reserve: Reserve | None = None
) -> AsyncGenerator[LedgerServer]:
    """A ledger that accepts clients; the lock must be held. SQLite's knows the config's prices.

    Raises:
        StoreFailed: The database does not answer, or has another schema or pepper.
        SecretError: A secret cannot be read.
    """
    secrets.ensure(settings)
    pepper = config.pepper(settings)
    admin = config.admin_key(layout)
    admin_digest = keys.digest(admin, pepper) if admin else b""
    clock = SystemClock()
    ids = IdSource(clock, random.SystemRandom())
    serve: Callable[..., LedgerServer] = LedgerServer
    core: Books
    if (url := config.database(settings)) is not None:
        serve, core = _on_database(url, layout, chain_key(pepper), clock, ids)
    else:
        _check_whole(layout)
        store = SqliteStore(layout.store, chain_key(pepper), layout.chain_head)
        core = Core(store, clock, ids, reserve)
        _sync_prices(core, settings)
    server = serve(core, layout.ledger_socket, layout.flight(0).parent, pepper=pepper, admin_digest=admin_digest)
    room = (descriptors.allow(DESCRIPTORS) - KEPT) // 2
    server.most_visitors = max(FEWEST_VISITORS, min(VISITORS, room))
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def _check_whole(layout: Layout) -> None:
    """See that the store has the link that was noted last, whatever follows on it.

    Raises:
        StoreFailed: It has not: this is a store of before.
    """
    last = noted(layout.chain_head)
    if last is None:
        return
    found = 0
    if layout.store.exists():
        with contextlib.closing(open_readonly(layout.store)) as db, contextlib.suppress(sqlite3.OperationalError):
            (found,) = db.execute("SELECT coalesce(max(number), 0) FROM links").fetchone()
    if found < last[0]:
        raise StoreFailed(
            f"{layout.store} has lost what was committed: it ends at link {found}, and {last[0]} was noted in "
            f"{layout.chain_head.name}. Put backups back with `headgate restore`; if the loss is meant, remove "
            f"that file"
        )


def _on_database(
    url: str, layout: Layout, key: bytes, clock: SystemClock, ids: IdSource
) -> tuple[Callable[..., LedgerServer], Books]:
    """A node of a shared ledger. Only who has such a URL needs the driver."""
    from headgate_gateway.ledger.postgres.core import PostgresCore
    from headgate_gateway.ledger.postgres.server import PostgresServer

    return PostgresServer, PostgresCore(url, layout.data_dir, key, clock, ids)


def _sync_prices(core: Books, settings: config.Settings) -> None:
    try:
        command = configured_prices(settings)
    except PluginError as error:
        _log.error("the config's prices were not taken: %s", error)
        return
    (reply,) = core.run([(Speaker(), wire.Run(0, command, "config"))])
    if isinstance(reply, wire.Ran) and isinstance(reply.result, Rejected):
        _log.error("the config's prices were not taken: %s", reply.result.message)


async def _serve(
    settings: config.Settings, snapshot: Path, layout: Layout, parent_fd: int | None, ready_fd: int | None
) -> None:
    stop = asyncio.Event()
    orphaned = asyncio.Event()
    loop = asyncio.get_running_loop()
    if parent_fd is None:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    else:

        def alone() -> None:
            orphaned.set()
            stop.set()

        parent.follow(parent_fd, told=stop.set, orphaned=alone)
    reserve = Reserve(layout.data_dir / "reserve")
    if not reserve.fill():
        _log.warning("%s has no room for a reserve of 64 MiB", layout.data_dir)
    async with serving(settings, layout, reserve=reserve) as server:
        server.broken.add_done_callback(lambda _: stop.set())
        garbage.settle()
        seals = loop.create_task(sealing.keep_sealing(settings, snapshot, SystemClock()))
        parent.announce(ready_fd)
        _log.info("ledger serves %s", layout.data_dir)
        await stop.wait()
        seals.cancel()
        await asyncio.gather(seals, return_exceptions=True)
        if orphaned.is_set():
            until = loop.time() + ORPHANED_S
            while server.clients and loop.time() < until:
                await asyncio.sleep(0.02)
        if server.broken.done():
            _log.error("the store failed in the middle of a write: %s", server.broken.result())
            os._exit(4)  # nothing may be written any more; the next start reads what is there
    reserve.free()


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop.

    Returns:
        The exit code: 0 after a graceful stop, 3 when another ledger has the folder, 4 when the store failed or
        cannot be read.
    """
    parser = argparse.ArgumentParser(prog="headgate-ledger")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--lock-wait", type=float, default=LOCK_WAIT_S, help="seconds to wait for the folder")
    given = parser.parse_args(arguments)
    parent.ignore_signals()
    settings = config.read_snapshot(given.settings)
    layout = settings.layout
    logs.configure(settings.log, "ledger")
    crashpoints.arm(config.crash_order())
    try:
        with locked(layout, wait_s=given.lock_wait), asyncio.Runner(loop_factory=_event_loop()) as runner:
            runner.run(_serve(settings, given.settings, layout, given.parent_fd, given.ready_fd))
    except AlreadyServed as error:
        sys.stderr.write(f"{error}\n")
        return 3
    except sqlite3.Error as error:
        sys.stderr.write(f"the store {layout.store} cannot be opened or read: {error}\n")
        return 4
    except (StoreFailed, StoreBroken, config.SecretError) as error:
        sys.stderr.write(f"{error}\n")
        return 4
    return 0

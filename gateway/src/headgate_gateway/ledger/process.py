"""The ledger's process: lock, secrets, store, socket, and what ends it. May import the ledger's rooms and settings."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from headgate_gateway import settings as config
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain import keys
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import secrets
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.core import Core
from headgate_gateway.ledger.server import LedgerServer
from headgate_gateway.ledger.store.sqlite import SqliteStore

LOCK_WAIT_S: Final = 5.0
"""A ledger that is just ending may still hold the lock."""

ORPHANED_S: Final = 2.0
"""How long the ledger waits for its clients to go when the supervisor has died."""

_log = logging.getLogger(__name__)


class AlreadyServed(Exception):
    """Another ledger has this data folder."""


@contextlib.contextmanager
def locked(layout: Layout, *, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
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
async def serving(settings: config.Settings, layout: Layout) -> AsyncIterator[LedgerServer]:
    """A ledger that accepts clients; the lock must be held."""
    secrets.ensure(layout)
    pepper = config.pepper(settings)
    clock = SystemClock()
    ids = IdSource(clock, random.SystemRandom())
    store = SqliteStore(layout.store, chain_key(pepper), layout.data_dir / "chain.head")
    admin = config.admin_key(layout)
    server = LedgerServer(
        Core(store, clock, ids),
        layout.ledger_socket,
        layout.flight(0).parent,
        pepper=pepper,
        admin_digest=keys.digest(admin, pepper) if admin else b"",
    )
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def _serve(settings: config.Settings, layout: Layout, parent_fd: int | None, ready_fd: int | None) -> None:
    stop = asyncio.Event()
    orphaned = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    if parent_fd is not None:
        loop.add_reader(parent_fd, _on_parent, loop, parent_fd, orphaned, stop)
    async with serving(settings, layout) as server:
        if ready_fd is not None:
            os.write(ready_fd, b'{"ready": true}\n')
            os.close(ready_fd)
        _log.info("ledger serves %s", layout.data_dir)
        await stop.wait()
        if orphaned.is_set():
            until = loop.time() + ORPHANED_S
            while server.clients and loop.time() < until:
                await asyncio.sleep(0.02)


def _on_parent(loop: asyncio.AbstractEventLoop, fd: int, orphaned: asyncio.Event, stop: asyncio.Event) -> None:
    if not os.read(fd, 4096):
        loop.remove_reader(fd)
        orphaned.set()
        stop.set()


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop. Exit code 0 after a graceful stop, 3 when another ledger has the folder."""
    parser = argparse.ArgumentParser(prog="headgate-ledger")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--ready-fd", type=int)
    given = parser.parse_args(arguments)
    settings = config.read_snapshot(given.settings)
    layout = settings.layout
    try:
        with locked(layout):
            asyncio.run(_serve(settings, layout, given.parent_fd, given.ready_fd))
    except AlreadyServed as error:
        sys.stderr.write(f"{error}\n")
        return 3
    return 0

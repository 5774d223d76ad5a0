"""Taking connections from a listening socket that all workers share, so that each has its part of them.

The kernel gives a connection to whoever asks first: of 64, one of two workers was seen to get 59. So each worker
says in a file that all of them map how many it holds, and one that holds more than the mean and two lets the
others go first. Not for long: a sibling may hang, and nobody is to wait for it. May import connection, disk and
settings.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import ssl
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Final

import structlog

from headgate_gateway.disk import allocate
from headgate_gateway.http.connection import HEAD_S, BoundedConnection
from headgate_gateway.settings import MOST_WORKERS

SLACK: Final = 2
"""Connections above the mean at which a worker begins to let others go first."""

BURST: Final = 16
"""Connections that are taken in one turn of the loop at most."""

PAUSE_S: Final = 0.005
"""How often a worker that lets others go first looks again."""

PATIENCE_S: Final = 0.02
"""How long it does so; then it takes those that wait itself, for the others do not."""

EXHAUSTED_S: Final = 1.0
"""How long nothing is taken after the system had no descriptor left."""

_FIELDS: Final = 2
_BYTES: Final = 8 * _FIELDS * (MOST_WORKERS + 1)
"""Of all workers and one more, which replaces another."""

_log = structlog.get_logger("headgate.worker")


class Shares:
    """How many connections each worker holds: for each of them its process id, 0 where none serves, and a count.

    Args:
        path: The file; made by whoever comes first.
        worker: Whose share is counted here.
    """

    def __init__(self, path: Path, worker: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            allocate(descriptor, _BYTES)
            self._table = memoryview(mmap.mmap(descriptor, _BYTES)).cast("q")
        finally:
            os.close(descriptor)
        self._own = _FIELDS * worker
        self._table[self._own + 1] = 0
        self._table[self._own] = os.getpid()

    @property
    def held(self) -> int:
        """Connections that this worker holds."""
        return self._table[self._own + 1]

    def opened(self) -> None:
        """One more."""
        self._table[self._own + 1] += 1

    def closed(self) -> None:
        """One less."""
        self._table[self._own + 1] -= 1

    def leave(self) -> None:
        """This worker takes no more."""
        self._table[self._own] = 0

    def above(self) -> bool:
        """Whether this worker holds so many that the others should go first; who has died is none of them."""
        table, own = self._table.tolist(), self.held
        pids = table[::_FIELDS]
        # There is room for far more workers than mostly serve.
        places = zip(filter(None, pids), compress(table[1::_FIELDS], pids), strict=True)
        serving = [held for pid, held in places if _lives(pid)]
        return own * len(serving) > sum(serving) + SLACK * len(serving)


def _lives(pid: int) -> bool:
    """Whether a sibling lives; what another user has under its number by now is none."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class Acceptor:
    """Takes connections from one listening socket.

    Args:
        listener: Bound and listening; others may take from it as well.
        shares: Who holds how many.
        make: Makes the protocol of a connection.
        tls: Certificate and key; None speaks plainly.
    """

    def __init__(
        self,
        listener: socket.socket,
        shares: Shares,
        make: Callable[[], BoundedConnection],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listener = listener
        self._shares = shares
        self._make = make
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stepped_back = 0.0
        self._closed = False
        listener.setblocking(False)
        self._loop.add_reader(listener, self._take)

    def close(self) -> None:
        """Take no more. Connections that were taken go on."""
        self._closed = True
        self._shares.leave()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """See asyncio.Server. There is nothing to wait for: uvicorn itself waits for its connections."""

    def _take(self, *, patient: bool = True) -> None:
        for _ in range(BURST):
            if patient and self._shares.above():
                self._stepped_back = self._loop.time()
                self._rest(PAUSE_S, self._look_again)
                return
            if not self._take_one():
                return

    def _take_one(self) -> bool:
        """Take one; returns whether there was one."""
        try:
            taken, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            _log.error("no connection can be taken", error=str(error))
            self._rest(EXHAUSTED_S, self._go_on)
            return False
        self._shares.opened()
        task = self._loop.create_task(self._open(taken))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, taken: socket.socket) -> None:
        protocol = self._make()
        protocol.on_lost = self._shares.closed
        try:
            patience_s = HEAD_S if self._tls else None
            await self._loop.connect_accepted_socket(
                lambda: protocol, taken, ssl=self._tls, ssl_handshake_timeout=patience_s
            )
            if self._closed:
                protocol.shutdown()  # the others have been told already
        except OSError as error:  # mostly of TLS, whose errors are among these
            _log.debug("a connection did not begin", error=str(error))
        finally:
            if not protocol.began:
                self._shares.closed()
                taken.close()

    def _rest(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, then)

    def _look_again(self) -> None:
        above = self._shares.above()
        if above and self._loop.time() - self._stepped_back < PATIENCE_S:
            self._timer = self._loop.call_later(PAUSE_S, self._look_again)
            return
        self._go_on()
        self._take(patient=not above)

    def _go_on(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener, self._take)

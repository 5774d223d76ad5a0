"""The line to the ledger: it mends itself, and keeps what is not answered yet. May import domain, wire, ipc.

Every operation on a request waits here until it is answered, whatever becomes of its caller or of the connection:
after a reconnect what is in flight is declared first, then what is unanswered is sent again. These operations are
idempotent by request id, so nothing happens twice. Questions and commands wait no longer than who asked: one that
was given up would come about long after another that took its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec
from headgate_engine import ipc

from headgate_gateway.domain.commands import GrantCredit
from headgate_gateway.ledger import wire

SETTLE_WAIT_S: Final = 10.0
WATCH_S: Final = 0.25
"""How often it is looked whose time is up; a caller waits at most so much longer than it should."""

AGAIN_S: Final = 0.25
"""How long an operation rests that the store could not take."""

CONNECT_WAIT_S: Final = 10.0
RECONNECT_S: Final = (0.02, 0.5)
"""First and longest pause between attempts to connect."""

REFUSED_S: Final = 10.0
"""The longest while the ledger speaks another protocol: it does until somebody restarts one of the two."""

CLOSE_S: Final = 1.0
"""How long closing waits for a ledger that does not read; what is owed stands in the flight file."""

_UNASKED: Final = frozenset({wire.Welcome, wire.Changed, wire.Store})
_UNOWED: Final = frozenset({wire.Identify, wire.Trace, wire.Advance, wire.Run})
"""Who asks hears that it came to nothing, and asks again: so it must not be done later as well."""


_log = logging.getLogger(__name__)


class LedgerUnavailable(Exception):
    """The ledger did not answer in time. A settlement is not lost: it is sent again until it is answered."""


class Waiting(msgspec.Struct, eq=False):
    """An operation without an answer yet. Its future gives None when none came until `due`, in loop time.

    Attributes:
        op: What was asked.
        future: Of its caller.
        due: When the caller's time is up.
        sent: Whether it ever left.
        abandoned: Nobody wants it any more.
        resting: The ledger's store could not take it; it is sent again soon.
    """

    op: Any
    future: asyncio.Future[Any]
    due: float
    sent: bool = False
    abandoned: bool = False
    resting: bool = False


class Line:
    """A connection to the ledger.

    Args:
        socket: Where the ledger listens.
        hello: Makes what is said first on each connection.
        welcomed: Takes what the ledger says to that, before anything is sent again.
        news: Takes what it says without being asked.
        answered: Takes an answer, with what waited for it.
        draw: Spreads the attempts to connect.

    Attributes:
        number: Gives the next operation its number.
    """

    def __init__(
        self,
        socket: Path,
        *,
        hello: Callable[[], wire.Hello],
        welcomed: Callable[[wire.Welcome], None],
        news: Callable[[wire.Changed | wire.Store], None],
        answered: Callable[[Waiting, Any], None],
        draw: random.Random,
    ) -> None:
        self._socket = socket
        self._hello = hello
        self._welcome = welcomed
        self._news = news
        self._answered = answered
        self._draw = draw
        self._codec: ipc.Codec[wire.FromLedger] = ipc.Codec(wire.FromLedger)
        self._connection: ipc.Connection[wire.FromLedger] | None = None
        self._loop = asyncio.get_running_loop()
        self._welcomed = asyncio.Event()
        self._lost = asyncio.Event()
        self._began: asyncio.Future[None] = self._loop.create_future()
        self._pause = RECONNECT_S[0]
        self._refusal = ""
        self.number = count(1).__next__
        self._waiting: dict[int, Waiting] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._runner: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Connect.

        Raises:
            LedgerUnavailable: No ledger answered in time, or it speaks another protocol.
        """
        self._runner = asyncio.create_task(self._stay_connected())
        try:
            async with asyncio.timeout(CONNECT_WAIT_S):
                await self._began
        except TimeoutError:
            await self.close()
            raise LedgerUnavailable(f"no ledger answers at {self._socket}") from None
        except LedgerUnavailable:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect; whoever waits is cancelled."""
        self._closing = True
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._connection.closed()
            except TimeoutError:
                self._connection.abort()
        if self._watch is not None:
            self._watch.cancel()
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.cancel()

    @property
    def stands(self) -> bool:
        """Whether the ledger has welcomed this client and the connection stands."""
        return self._welcomed.is_set()

    @property
    def unanswered(self) -> int:
        """Operations without an answer."""
        return len(self._waiting)

    def post(self, op: Any, *, wait_s: float | None = None) -> Waiting:
        """Keep a numbered operation until it is answered, and send it if there is a connection."""
        loop = self._loop
        due = loop.time() + (SETTLE_WAIT_S if wait_s is None else wait_s)
        waiting = Waiting(op, loop.create_future(), due)
        self._keep(waiting)
        self._send(waiting)
        return waiting

    async def ask(self, op: Any) -> Any:
        """Post an operation and wait for its answer; who is cancelled meanwhile takes only its own wait along.

        Raises:
            LedgerUnavailable: There was none in time. Questions and commands are given up then, others are owed.
        """
        reply = await self.post(op).future
        if reply is None:
            raise LedgerUnavailable("the ledger does not answer")
        return reply

    def tell(self, message: wire.Seen) -> None:
        """Say what wants no answer, if there is a connection."""
        if self._connection is not None:
            with contextlib.suppress(ipc.ConnectionLost):
                self._connection.send(message)

    def forget(self, waiting: Waiting) -> None:
        """Wait for its answer no more, and do not send it again."""
        self._waiting.pop(waiting.op.n, None)

    # -- the connection

    async def _stay_connected(self) -> None:
        while not self._closing:
            self._lost.clear()
            with contextlib.suppress(OSError):
                self._connection = await ipc.connect(self._socket, self._make_connection)
                self._connection.send(self._hello())
                await self._lost.wait()
            self._connection = None
            await asyncio.sleep(self._pause * (0.5 + self._draw.random()))
            self._pause = min(self._pause * 2, REFUSED_S if self._refusal else RECONNECT_S[1])

    def _make_connection(self) -> ipc.Connection[wire.FromLedger]:
        return ipc.Connection(self._codec, self._on_message, self._on_close)

    def _on_close(self, _connection: ipc.Connection[wire.FromLedger], _error: Exception | None) -> None:
        self._welcomed.clear()
        self._lost.set()

    def _on_message(self, _connection: ipc.Connection[wire.FromLedger], message: wire.FromLedger) -> None:
        if type(message) in _UNASKED:
            if isinstance(message, wire.Welcome):
                self._on_welcome(message)
            else:
                self._news(message)  # type: ignore[arg-type]
            return
        waiting = self._waiting.pop(message.n, None)  # type: ignore[union-attr]
        if waiting is None:
            if isinstance(message, wire.Failed) and message.code == "protocol":
                self._on_refusal(message.message)
            return
        if type(message) is wire.Failed and message.code == "unavailable" and type(waiting.op) not in _UNOWED:
            self._rest(waiting)
            return
        self._answered(waiting, message)

    def _on_refusal(self, why: str) -> None:
        """The ledger is of another release: said once, and asked again ever more rarely."""
        if why != self._refusal:
            _log.error("the ledger refuses this process until one of them is restarted: %s", why)
        self._refusal = why
        if not self._began.done():
            self._began.set_exception(LedgerUnavailable(f"the ledger at {self._socket} refuses: {why}"))

    def _on_welcome(self, welcome: wire.Welcome) -> None:
        self._pause, self._refusal = RECONNECT_S[0], ""
        if not self._began.done():
            self._began.set_result(None)
        self._welcome(welcome)
        self._welcomed.set()
        for n in sorted(self._waiting):
            waiting = self._waiting[n]
            if type(waiting.op) in _UNOWED and waiting.future.done():
                del self._waiting[n]
            elif (
                waiting.sent and isinstance(waiting.op, wire.Run) and isinstance(waiting.op.command, GrantCredit)
            ):
                del self._waiting[n]
                waiting.future.set_exception(
                    LedgerUnavailable("the connection was lost; look whether the credit was granted")
                )
            else:
                self._send(waiting)

    # -- what waits

    def _rest(self, waiting: Waiting) -> None:
        """The store could not take it now; it is still owed, and its caller's time runs on."""
        waiting.resting = True
        self._keep(waiting)
        self._loop.call_later(AGAIN_S, self._again, waiting)

    def _again(self, waiting: Waiting) -> None:
        if waiting.resting and not self._closing:
            self._send(waiting)

    def _keep(self, waiting: Waiting) -> None:
        self._waiting[waiting.op.n] = waiting
        if self._watch is None:
            self._watch = self._loop.call_later(WATCH_S, self._look_whose_time_is_up)

    def _look_whose_time_is_up(self) -> None:
        """One timer for all: one for each is a good part of what asking costs."""
        now = self._loop.time()
        for waiting in [waiting for waiting in self._waiting.values() if waiting.due <= now]:
            if not waiting.future.done():
                waiting.future.set_result(None)
            if type(waiting.op) in _UNOWED:
                self.forget(waiting)
        again = self._loop.call_later(WATCH_S, self._look_whose_time_is_up) if self._waiting else None
        self._watch = again

    def _send(self, waiting: Waiting) -> None:
        waiting.resting = False
        if self._connection is not None and self._welcomed.is_set():
            try:
                self._connection.send(waiting.op)
            except ipc.ConnectionLost:
                return  # it is sent again on the next connection
            except (ipc.FrameTooLarge, TypeError, ValueError, OverflowError) as error:
                # Not on any connection either, and were it kept it would break each of them.
                self.forget(waiting)
                self._answered(waiting, wire.Failed(waiting.op.n, "invalid", str(error)))
                return
            waiting.sent = True

"""The events of one attempt: read in time, cut from outside, closed exactly once.

What is read is events one by one or, by `Once`, all events of a whole answer as one piece. `Source` reads in the
task of whoever asks, so that a cancelled handler cancels the upstream at once. `Detached` reads in a task of its
own through a bounded queue, for models whose policy lets an answer run on after its client has left. May import
deadlines and the plugin API.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from headgate_plugin_api import BackendError, Cancelled, Event, UpstreamFailed, UpstreamTimeout

from headgate_gateway.inference.deadlines import Deadlines

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

QUEUE: Final = 64
"""Events that may wait between a detached upstream and its reader."""

CLOSE_S: Final = 5.0
"""Seconds that a backend may take to let go of a cancelled answer."""


class EventSource(Protocol[T_co]):
    """What the relay reads from."""

    async def next(self) -> T_co | None:
        """The next piece, or None after the last. Raises the plugin API's errors."""
        ...

    def interrupt(self) -> None:
        """Make a read under way fail with `Cancelled`, and every later one."""
        ...

    def let_go(self) -> bool:
        """Close it where nothing has to be waited for; else False, and nothing is done."""
        ...

    async def close(self) -> None:
        """Let go of the upstream. Idempotent; waits for a read under way."""
        ...


class Once(Generic[T]):
    """One piece, in place of an iterator; it is asked for, once, when it is read."""

    __slots__ = ("ask",)

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self.ask = ask


class Source(Generic[T]):
    """Reads a backend's iterator in the caller's task.

    Args:
        events: What the backend gave.
        deadline: Loop time after which reading fails with `UpstreamTimeout`.
        deadlines: Tell when it is over.
        what: Names the target in errors.
    """

    _reader: asyncio.Task[Any] | None = None
    _kicked = False
    _stopped: Literal["", "late", "cut"] = ""
    _idle: asyncio.Event | None = None
    _closed = False
    _over = False

    def __init__(
        self, events: AsyncIterator[T] | Once[T], deadline: float, deadlines: Deadlines, what: str
    ) -> None:
        self._events = events
        self._what = what
        self._deadlines = deadlines
        deadlines.watch(self, deadline)

    async def next(self) -> T | None:
        """See `EventSource`."""
        if self._stopped:
            raise self._error()
        task = asyncio.current_task()
        assert task is not None
        self._reader, cancelled_before = task, task.cancelling()
        events = self._events
        try:
            if isinstance(events, Once):
                event: T | None = await events.ask()
                self._over = True
            else:
                event = await anext(events, None)
                self._over = event is None
        except BackendError as error:
            if error.inner:  # it comes from where addresses are known, and models are not
                error.message = f"{self._what}: {error.message}"
            raise
        except asyncio.CancelledError:
            # Ours, and nobody else's: then it is not the task that was cancelled, but this read.
            if self._kicked and task.cancelling() - 1 <= cancelled_before:
                raise self._error() from None
            raise
        except Exception as error:
            # A backend that breaks its contract must cost one request, not the relay.
            raise UpstreamFailed(f"{self._what} broke", inner=f"{type(error).__name__}: {error}") from error
        finally:
            self._reader = None
            if self._kicked:
                self._kicked = False
                task.uncancel()
            if self._idle is not None:
                self._idle.set()
        return event

    def interrupt(self) -> None:
        """See `EventSource`."""
        self._stop("cut")

    def late(self) -> None:
        """See `Deadlines`."""
        self._stop("late")

    def _stop(self, why: Literal["late", "cut"]) -> None:
        """Make a read under way fail, as `asyncio.timeout` does, and every later one."""
        if not self._stopped:
            self._stopped = why
            if self._reader is not None:
                self._kicked = True
                self._reader.cancel()

    def _error(self) -> BackendError:
        if self._stopped == "late":
            return UpstreamTimeout(f"{self._what} took too long")
        return Cancelled("the request was cut")

    def let_go(self) -> bool:
        """See `EventSource`. Whatever came to its end by itself has let go of the upstream."""
        if not self._over or self._reader is not None:
            return False
        self._closed = True
        self._deadlines.forget(self)
        self._stop("cut")
        return True

    async def close(self) -> None:
        """See `EventSource`."""
        if self._closed:
            return
        self._closed = True
        self._deadlines.forget(self)
        self.interrupt()
        if self._reader is not None:
            self._idle = asyncio.Event()
            await self._idle.wait()
        aclose = getattr(self._events, "aclose", None)
        if aclose is not None and not self._over:
            # Whatever a backend says while it is being let go of changes nothing for the request.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_S):
                    await aclose()


class Detached:
    """Reads a source in a task of its own, so that the answer outlives its reader's cancellation."""

    def __init__(self, source: Source[Event]) -> None:
        self._source = source
        self._queue: asyncio.Queue[Event | BackendError | None] = asyncio.Queue(QUEUE)
        self._task = asyncio.create_task(self._pump())
        self._ended: BackendError | None = None
        self._done = False

    async def _pump(self) -> None:
        while True:
            try:
                event = await self._source.next()
            except BackendError as error:
                await self._queue.put(error)
                return
            await self._queue.put(event)
            if event is None:
                return

    async def next(self) -> Event | None:
        """See `EventSource`."""
        if self._done:
            if self._ended is not None:
                raise self._ended
            return None
        item = await self._queue.get()
        if item is None or isinstance(item, BackendError):
            self._done = True
            if item is not None:
                self._ended = item
                raise item
        return item

    def interrupt(self) -> None:
        """See `EventSource`."""
        self._source.interrupt()

    def let_go(self) -> bool:
        """See `EventSource`."""
        return False

    async def close(self) -> None:
        """See `EventSource`."""
        self._source.interrupt()
        self._task.cancel()
        await asyncio.wait({self._task})
        # A reader in another task must not wait for a queue that nobody fills any more.
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(Cancelled("the request was cut"))
        await self._source.close()

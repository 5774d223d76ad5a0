"""A thread of its own for each consumer, on which its hook is called. May import plugins."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence

from headgate_gateway.plugins import Consume


class HookFailed(Exception):
    """A consumer's hook raised; the cause is what it raised."""


class Calling:
    """Calls a hook on one thread, always the same: what it opened there it can go on using.

    The thread is a daemon: a hook that never returns holds up nobody, and not the end of the process.

    Args:
        name: The consumer's.
        hook: What is called.
    """

    def __init__(self, name: str, hook: Consume) -> None:
        self._hook = hook
        self._loop = asyncio.get_running_loop()
        self._asked: queue.SimpleQueue[tuple[Sequence[object], asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, records: Sequence[object]) -> asyncio.Future[None]:
        """Hand records over; done when the hook returned, or raised: `HookFailed`."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._asked.put((records, future))
        return future

    def _run(self) -> None:
        while True:
            records, future = self._asked.get()
            error: BaseException | None = None
            try:
                self._hook(records=records)
            except BaseException as raised:  # noqa: BLE001 - whatever a plugin raises, also SystemExit, is its failure
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(_settle, future, error)


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(None)
    else:
        failed = HookFailed(f"{type(error).__name__}: {error}")
        failed.__cause__ = error
        future.set_exception(failed)

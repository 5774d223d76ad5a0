"""Tasks of a ledger's process: those that are done again and again, and what becomes of one that fails.

May import the store's contract.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from headgate_gateway.ledger.store.contract import StoreBroken, StoreFailed

AGAIN_S: Final = 0.02
"""When housekeeping goes on that left something to do: everybody waits for it, so it is done in small pieces."""

_log = logging.getLogger(__name__)


class Housekeeping:
    """Runs tasks on the loop of whoever makes it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[str] = self._loop.create_future()
        """Done when the store cannot be trusted any more: the process must end and start again."""

    def _break(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_result(str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task of this server; one that fails in a way nobody thought of ends the process, not a lane."""
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("a task of the ledger failed", exc_info=error)
                self._break(error)

        task.add_done_callback(ended)

    def _every(self, seconds: float, do: Callable[[], Awaitable[bool | None]]) -> None:
        """Do it again and again, soon where it returns True; that it fails is said once."""

        async def again() -> None:
            failing, more = False, None
            while True:
                await asyncio.sleep(AGAIN_S if more else seconds)
                more = None
                if self.broken.done():  # a flight file that memory has no use for may be all there is
                    return
                try:
                    more = await do()
                    failing = False
                except StoreBroken as error:
                    self._break(error)
                except StoreFailed as error:
                    if not failing:
                        _log.error("the store does not answer: %s", error)
                    failing = True
                except Exception:  # noqa: BLE001 - a failure of housekeeping must not end the ledger
                    if not failing:
                        _log.exception("housekeeping failed")
                    failing = True

        self._spawn(again())

"""Hands records to one consumer, in order and at least once. May import calling and what the room may.

One loop: read a slice after the cursor, call the hook, move the cursor. Whatever fails, it waits and does the
same again from where the cursor is, so that nothing is skipped and there is nothing to repair.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog
from headgate_plugin_api import UsageRecord

from headgate_gateway.admin.usage import QueryTooSlow, UsageReader, UsageUnavailable
from headgate_gateway.backoff import Backoff
from headgate_gateway.ledger.line import LedgerUnavailable
from headgate_gateway.ledger.lookout import View
from headgate_gateway.outbox.calling import Calling, HookFailed

SLICE: Final = 500
"""Records that a hook is given at once, at most."""

SLOW_S: Final = 60.0
"""A hook that takes longer is named in the log; it is waited for all the same."""

MOST_ERROR: Final = 500
"""Characters of an error that are kept."""

_TROUBLE: Final = (LedgerUnavailable, UsageUnavailable, QueryTooSlow)
_log = structlog.get_logger("headgate.outbox")

Advance = Callable[[str, int, int | None, str], Awaitable[tuple[int, int] | None]]


class Counts(Protocol):
    """What is counted of consumers."""

    def failed(self, consumer: str) -> None:
        """A hook raised."""
        ...


class Delivery:
    """What goes to one consumer.

    Args:
        name: The consumer's.
        calling: Where its hook is called.
        reader: Reads records.
        advance: Moves its cursor, see `LedgerClient.advance`.
        backoff: When to try again.
        counts: Told of failures.
        begin: The last record when the process began: a consumer that is new to the store is given what follows.
    """

    def __init__(
        self,
        name: str,
        calling: Calling,
        reader: UsageReader,
        advance: Advance,
        backoff: Backoff,
        counts: Counts,
        begin: int,
    ) -> None:
        self.name = name
        self._calling = calling
        self._reader = reader
        self._advance = advance
        self._backoff = backoff
        self._counts = counts
        self._begin: int | None = begin
        self._seen = asyncio.Event()
        self._view: View | None = None
        self._cursor: tuple[int, int] | None = None
        self._taken: tuple[int, int] | None = None
        self._looking = False
        self._moved = False
        self._end: int | None = None
        self._ending = asyncio.Event()

    def looking(self) -> None:
        """A look at the store begins: what it finds of the cursor is older than what is heard from here on."""
        self._moved = False

    def saw(self, view: View | None) -> None:
        """What the look found; None where it failed, so that nobody knows whose turn it is."""
        self._view = view
        if view is not None and not self._moved:
            self._cursor = view.cursors.get(self.name)
        self._seen.set()

    def finish(self, last: int) -> None:
        """End once this record was handed over, or at the first failure."""
        self._end = last
        self._ending.set()
        self._seen.set()

    async def run(self) -> None:
        """Hand records over until told to finish."""
        while not self._finished:
            try:
                worked = await self._step()
            except _TROUBLE as error:
                _log.warning("records cannot be handed over now", consumer=self.name, error=str(error))
            except HookFailed:
                pass  # it was said where it happened
            except Exception:  # noqa: BLE001 - of one consumer: the others go on
                _log.exception("records cannot be handed over", consumer=self.name)
            else:
                if not worked:
                    self._seen.clear()
                    await self._seen.wait()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.delay()):
                    await self._ending.wait()
                    return

    @property
    def _finished(self) -> bool:
        if self._end is None:
            return False
        mine = self._view is not None and self.name in self._view.mine
        return not mine or self._cursor is None or self._cursor[0] >= self._end

    async def _step(self) -> bool:
        """Do what there is to be done next; returns whether there was anything."""
        view = self._view
        if view is None or self.name not in view.mine:
            return False
        if self._cursor is None:
            begin = view.last if self._begin is None else self._begin
            self._hear(await self._advance(self.name, begin, None, ""))
            _log.info("a consumer begins", consumer=self.name, after=begin)
            return True
        self._begin = None
        position, epoch = self._cursor
        if self._taken is None or self._taken[1] != epoch:
            self._taken = None
            if position >= view.last:
                return False
            page = await self._reader.records(after=position, limit=SLICE)
            if not page.records:
                return False
            await self._hand_over(page.records, position, epoch)
            self._taken = (page.records[-1].seq, epoch)
        self._hear(await self._advance(self.name, self._taken[0], epoch, ""))
        self._taken = None
        self._backoff.forget()
        return True

    async def _hand_over(self, records: tuple[UsageRecord, ...], position: int, epoch: int) -> None:
        told = {"consumer": self.name, "first": records[0].seq, "last": records[-1].seq}
        call = self._calling.call(records)
        done, _ = await asyncio.wait({call}, timeout=SLOW_S)
        if not done:
            _log.warning("a consumer has not taken its records yet", **told, after_s=SLOW_S)
        try:
            await call
        except HookFailed as failed:
            self._counts.failed(self.name)
            _log.error("a consumer failed and is asked again", **told, exc_info=failed.__cause__)
            error = str(failed).encode(errors="replace").decode().replace("\0", "")[:MOST_ERROR]
            self._hear(await self._advance(self.name, position, epoch, error))
            raise

    def _hear(self, cursor: tuple[int, int] | None) -> None:
        self._cursor = cursor
        self._moved = True

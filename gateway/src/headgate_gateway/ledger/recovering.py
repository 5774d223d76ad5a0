"""The ledger's part in recovery: finds who has died, and ends what they had in flight, for both stores.

May import recovery, flight, housekeeping, core and wire.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar, TypeVarTuple, Unpack

from headgate_gateway.crashpoints import reach
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.core import BATCH, Speaker
from headgate_gateway.ledger.flight import ZERO, Flight, Header, boot_id, dead_files
from headgate_gateway.ledger.housekeeping import Housekeeping
from headgate_gateway.ledger.recovery import are_over, endings
from headgate_gateway.ledger.store.contract import StoreBroken

KEPT_S: Final = 1.0
"""How long a dead worker's file rests whose requests the store would not all end."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger(__name__)


class Lives(Protocol):
    """What recovery asks of a core."""

    def of_incarnation(self, incarnation: str) -> list[str]:
        """Open requests of a life of a worker."""
        ...

    def incarnations(self) -> set[str]:
        """Lives of workers that have open requests."""
        ...


class Recovering(Housekeeping, ABC):
    """Ends what the dead left behind.

    Args:
        core: What has open requests.
        flights: Folder of the workers' flight files.
    """

    def __init__(self, core: Lives, flights: Path) -> None:
        super().__init__()
        self._lives = core
        self._flights = flights
        self._kept: dict[str, float] = {}
        """Until when dead workers' files rest whose requests could not all be ended, by incarnation."""

    @abstractmethod
    def _is_connected(self, incarnation: str) -> bool:
        """Whether what a worker has sent may not all have been read yet, even if it is dead."""

    @abstractmethod
    def _wait_in_line(self, asker: asyncio.Future[wire.Reply], speaker: Speaker, op: wire.Op) -> None:
        """Let an operation of this process wait among those of clients."""

    async def recover(self) -> None:
        """End what dead workers had in flight. A file whose lock is held belongs to a living one.

        Raises:
            OSError: A file cannot be read; what all others say has been done.
        """
        failed: OSError | None = None
        for dead in dead_files(self._flights):
            incarnation = dead.header.incarnation
            if self._is_connected(incarnation) or self._loop.time() < self._kept.get(incarnation, 0.0):
                continue
            try:
                flights = list(dead.flights())
            except OSError as error:
                failed = error
                continue
            if await self._recover(dead.header, flights):
                self._kept.pop(incarnation, None)
                dead.retire()
            else:
                self._kept[incarnation] = self._loop.time() + KEPT_S
        if failed is not None:
            raise failed

    async def _recover(self, header: Header, flights: list[Flight]) -> bool:
        """End what a dead worker had in flight; returns whether all of it has ended."""
        open_requests = await self._ask_core(self._lives.of_incarnation, header.incarnation)
        # What has ended, other than by its worker's word, is told all the same: see `postgres.late`.
        proofs = [flight.request_id for flight in flights if any(flight.usage)]
        known = dict.fromkeys([*open_requests, *proofs])
        operations = endings(known, flights, power_lost=header.boot_id != boot_id())
        if operations and header.incarnation not in self._kept:
            _log.warning("worker %d died with %d requests in flight", header.worker, len(operations))
        speaker = Speaker(header.worker, header.incarnation)
        if not are_over(await self._carry_out([(speaker, op) for op in operations])):
            return False
        if operations:
            reach("ledger.in_recovery")
        return True

    async def recover_orphans(self) -> None:
        """End requests whose flight file is gone altogether: nobody can ever say what became of them.

        A living worker's file has its name before its first request: this meets only files that someone removed.
        """
        lives = await self._ask_core(self._lives.incarnations)
        for incarnation in lives - {path.stem.rpartition("-")[2] for path in self._flights.glob("*.flight")}:
            orphans = await self._ask_core(self._lives.of_incarnation, incarnation)
            _log.error("%d requests of %s have no flight file", len(orphans), incarnation)
            speaker = Speaker(-1, incarnation)
            await self._carry_out(
                [
                    (speaker, wire.Settle(0, request_id, ZERO, "slot", "gateway_crash", "", billed=False))
                    for request_id in orphans
                ]
            )

    async def _carry_out(self, operations: Sequence[tuple[Speaker, wire.Op]]) -> list[wire.Reply]:
        """Let operations of this process wait among the others, one batch after another.

        Raises:
            StoreBroken: The process must end.
        """
        replies: list[wire.Reply] = []
        for start in range(0, len(operations), BATCH):
            futures: list[asyncio.Future[wire.Reply]] = []
            for speaker, op in operations[start : start + BATCH]:
                futures.append(self._loop.create_future())
                self._wait_in_line(futures[-1], speaker, op)
            carried_out = asyncio.gather(*futures)
            await asyncio.wait((carried_out, self.broken), return_when=asyncio.FIRST_COMPLETED)
            if not carried_out.done():
                carried_out.cancel()
                await asyncio.gather(carried_out, return_exceptions=True)
                raise StoreBroken(self.broken.result())
            replies += carried_out.result()
        return replies

    async def _ask_core(self, do: Callable[[Unpack[Ts]], T], *given: *Ts) -> T:
        """Ask what may take its time."""
        return do(*given)

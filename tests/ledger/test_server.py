"""The ledger's socket in this process: what it does when the store breaks, and what its clients do without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from headgate_gateway.ledger.book import Writes
from headgate_gateway.ledger.core import Core, Speaker
from headgate_gateway.ledger.flight import ENDED, FlightFile
from headgate_gateway.ledger.server import LedgerServer
from headgate_gateway.ledger.store import StoreBroken
from headgate_gateway.ledger.store.sqlite import SqliteStore

from tests.ledger.conftest import PEPPER


class BreaksOnce:
    """A store of which one write fails in the middle; the next would succeed."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.breaks = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, writes: Writes, at_us: int) -> None:
        if self.breaks:
            self.breaks = False
            raise StoreBroken("input/output error")
        self._store.commit(writes, at_us)


class Served:
    """A ledger that serves in this process, on a store that can be told to break."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.store = BreaksOnce(bench.core._store)
        bench.core = Core(self.store, bench.clock, bench.ids)  # type: ignore[arg-type]
        layout = bench.layout
        self.server = LedgerServer(
            bench.core, layout.ledger_socket, layout.flight(0).parent, pepper=PEPPER, admin_digest=b""
        )

    def successor(self) -> None:
        """The process ends at once, and this is what the next one finds."""
        for task in self.server._tasks:
            task.cancel()
        if self.server._server is not None:
            self.server._server.close()
        self.bench.core = Core(self.store, self.bench.clock, self.bench.ids)  # type: ignore[arg-type]


@pytest.fixture
async def served(bench: Any) -> AsyncIterator[Served]:
    served = Served(bench)
    yield served
    served.successor()


async def test_a_store_that_breaks_in_a_recovery_ends_the_ledger_and_loses_nothing(
    served: Served,
) -> None:
    bench, server = served.bench, served.server
    bench.price()
    key = bench.key("1/total")
    await server.start()
    file = FlightFile(bench.layout.flight(3), 3, slots=8)
    bench.speaker = Speaker(3, file.incarnation)
    granted = bench.admit(key)
    slot = file.take(granted.request_id)
    assert slot is not None
    file.write(slot, ENDED, (0, 0, 0, 7, 0, 0, 0, 0, 0), source="upstream")
    served.store.breaks = True
    file.close()
    async with asyncio.timeout(5):
        await server.broken
    assert file.path.exists()
    served.successor()
    LedgerServer(bench.core, server._socket, file.path.parent, pepper=PEPPER, admin_digest=b"").recover()
    assert bench.budgets(key)["total"].spent == 7

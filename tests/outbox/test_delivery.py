"""Handing records over, with a real store and real hooks on their threads; only the ledger has no socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.admin.sqlite_usage import SqliteUsage
from headgate_gateway.backoff import Backoff
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.line import LedgerUnavailable
from headgate_gateway.ledger.lookout import SqliteLookout
from headgate_gateway.outbox import delivery as delivery_module
from headgate_gateway.outbox import watch as watch_module
from headgate_gateway.outbox.calling import Calling
from headgate_gateway.outbox.delivery import Delivery
from headgate_gateway.outbox.watch import Watch
from headgate_plugin_api import UsageRecord

from tests.ledger.conftest import Bench

SLICE = 3


class Taker:
    """A consumer's hook: keeps what it is given; `act` may do something before that."""

    def __init__(self, act: Callable[[Sequence[UsageRecord]], None] = lambda _: None) -> None:
        self.act = act
        self.calls: list[list[int]] = []
        self.taken: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, records: Sequence[UsageRecord]) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append([record.seq for record in records])
        self.act(records)
        self.taken += [record.seq for record in records]


class House:
    """A bench, the deliveries of some consumers, and the watch that wakes them."""

    def __init__(self, folder: Path, takers: dict[str, Taker], begin: int = 0) -> None:
        self.bench = Bench(folder / "data")
        self.key = self.bench.key()
        self.reader = SqliteUsage(self.bench.layout)
        self.failures: list[str] = []
        self.trouble: Exception | None = None
        self.deliveries = {
            name: Delivery(
                name,
                Calling(name, taker),
                self.reader,
                self.advance,
                Backoff(random.Random(1), most_s=0.1),
                self,
                begin,
            )
            for name, taker in takers.items()
        }
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def failed(self, consumer: str) -> None:
        self.failures.append(consumer)

    async def advance(
        self, consumer: str, position: int, epoch: int | None, error: str
    ) -> tuple[int, int] | None:
        if self.trouble is not None:
            raise self.trouble
        cursor = self.bench.core.advance(wire.Advance(1, consumer, position, epoch, error))
        return None if cursor.position is None else (cursor.position, cursor.epoch)

    def record(self, count: int) -> None:
        for _ in range(count):
            self.bench.settle(self.bench.admit(self.key).request_id, 1)

    async def consumer(self, name: str = "a") -> Any:
        return next((found for found in await self.reader.consumers() if found.name == name), None)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        lookout = SqliteLookout(self.bench.layout.store)
        watch = asyncio.create_task(Watch(lookout, list(self.deliveries.values())).run())
        self.tasks = {name: asyncio.create_task(each.run()) for name, each in self.deliveries.items()}
        try:
            for name in self.deliveries:
                await until(lambda name=name: self.consumer(name))
            yield
        finally:
            for task in (watch, *self.tasks.values()):
                task.cancel()
            await asyncio.gather(watch, *self.tasks.values(), return_exceptions=True)
            lookout.close()
            assert self.bench.audit().ok
            self.bench.core.close()


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(30):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(delivery_module, "SLICE", SLICE)


async def test_a_new_consumer_is_given_what_is_recorded_from_now_on(tmp_path: Path) -> None:
    taker = Taker()
    house = House(tmp_path, {"a": taker}, begin=4)
    house.record(6)
    async with house.working():
        house.record(8)
        await until(lambda: len(taker.taken) == 10)
        assert taker.taken == list(range(5, 15))
        assert max(map(len, taker.calls)) <= SLICE
        assert len(taker.threads) == 1
        assert taker.threads != {threading.get_ident()}
        await until(lambda: _is_at(house, 14))


async def _is_at(house: House, position: int) -> bool:
    return bool((await house.consumer()).position == position)


async def test_no_cursor_is_ahead_of_what_a_hook_returned_from(tmp_path: Path) -> None:
    positions: list[tuple[int, int]] = []

    def look(records: Sequence[UsageRecord]) -> None:
        (found,) = asyncio.run(house.reader.consumers())
        positions.append((found.position, records[0].seq))

    house = House(tmp_path, {"a": Taker(look)})
    async with house.working():
        for _ in range(4):
            house.record(5)
            await asyncio.sleep(0)
        await until(lambda: _is_at(house, 20))
    assert all(position == first - 1 for position, first in positions)


async def test_a_hook_that_raises_is_given_the_same_until_it_returns(tmp_path: Path) -> None:
    broken = True

    def act(_: Sequence[UsageRecord]) -> None:
        if broken:
            raise SystemExit("no\0 room\udc80")

    taker = Taker(act)
    house = House(tmp_path, {"a": taker})
    async with house.working():
        house.record(2)
        await until(lambda: len(taker.calls) >= 4)
        assert {call[0] for call in taker.calls} == {1}
        found = await until(lambda: _failing(house))
        assert (found.position, found.behind, found.error) == (0, 2, "SystemExit: no room?")
        broken = False
        await until(lambda: _is_at(house, 2))
        assert taker.taken == [1, 2]
        assert (await house.consumer()).error == ""
        assert len(house.failures) == len(taker.calls) - 1


async def _failing(house: House) -> Any:
    found = await house.consumer()
    return found if found.error else None


async def test_one_that_is_stuck_holds_up_no_other_and_no_end(tmp_path: Path) -> None:
    go_on = threading.Event()
    stuck, other = Taker(lambda _: go_on.wait() and None), Taker()
    house = House(tmp_path, {"stuck": stuck, "other": other})
    async with house.working():
        house.record(1)
        await until(lambda: stuck.calls and other.taken)
        house.record(7)
        await until(lambda: len(other.taken) == 8)
        for each in house.deliveries.values():
            each.finish(8)
        await asyncio.wait_for(house.tasks["other"], 30)
        assert not house.tasks["stuck"].done()
        assert (await house.consumer("stuck")).position == 0
        go_on.set()
        await asyncio.wait_for(house.tasks["stuck"], 30)
        assert stuck.taken == list(range(1, 9))


async def test_who_finishes_hands_over_what_there_is(tmp_path: Path) -> None:
    taker = Taker()
    house = House(tmp_path, {"a": taker})
    async with house.working():
        house.record(10)
        house.deliveries["a"].finish(10)
        await asyncio.wait_for(house.tasks["a"], 30)
        assert taker.taken == list(range(1, 11))
        assert (await house.consumer()).position == 10


async def test_who_finishes_does_not_try_what_failed_again(tmp_path: Path) -> None:
    def act(_: Sequence[UsageRecord]) -> None:
        raise ValueError("never")

    taker = Taker(act)
    house = House(tmp_path, {"a": taker})
    async with house.working():
        house.record(1)
        house.deliveries["a"].finish(1)
        await asyncio.wait_for(house.tasks["a"], 30)
        assert (await house.consumer()).position == 0


@pytest.mark.parametrize("trouble", [LedgerUnavailable("gone"), ValueError("what nobody thought of")])
async def test_what_was_taken_while_the_ledger_was_gone_is_not_given_again(
    tmp_path: Path, trouble: Exception
) -> None:
    def act(_: Sequence[UsageRecord]) -> None:
        house.trouble = trouble

    taker = Taker(act)
    house = House(tmp_path, {"a": taker})
    async with house.working():
        house.record(2)
        await until(lambda: taker.taken == [1, 2])
        house.record(1)
        taker.act = lambda _: None
        assert (await house.consumer()).position == 0
        house.trouble = None
        await until(lambda: _is_at(house, 3))
        assert taker.taken == [1, 2, 3]


async def test_a_consumer_that_is_set_back_meanwhile_goes_on_from_there(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def act(records: Sequence[UsageRecord]) -> None:
        if records[0].seq == 4 and not go_on.is_set():
            inside.set()
            go_on.wait(30)

    taker = Taker(act)
    house = House(tmp_path, {"a": taker})
    async with house.working():
        house.record(3)
        await until(lambda: _is_at(house, 3))
        house.record(2)
        await until(inside.is_set)
        house.bench.clock.us += 1
        assert isinstance(house.bench.do(c.MoveCursor(consumer="a", position=1)), c.Done)
        go_on.set()
        await until(lambda: _is_at(house, 5))
        assert taker.taken == [1, 2, 3, 4, 5, 2, 3, 4, 5]


async def test_one_that_is_set_back_while_there_is_nothing_to_do_begins_at_once(tmp_path: Path) -> None:
    taker = Taker()
    house = House(tmp_path, {"a": taker})
    async with house.working():
        house.record(3)
        await until(lambda: _is_at(house, 3))
        house.bench.clock.us += 1
        house.bench.do(c.MoveCursor(consumer="a", position=0))
        await until(lambda: taker.taken == [1, 2, 3, 1, 2, 3])
        house.bench.clock.us += 1
        house.bench.do(c.MoveCursor(consumer="a", position=None))
        await until(lambda: _is_there(house))
        house.record(1)
        await until(lambda: taker.taken[6:] == [4])


async def _is_there(house: House) -> bool:
    found = await house.consumer()
    return found is not None and bool(found.position == 3)


async def test_a_slow_hook_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(delivery_module, "SLOW_S", 0.01)
    go_on = threading.Event()
    taker = Taker(lambda _: go_on.wait(30) and None)
    house = House(tmp_path, {"a": taker})
    told = ""
    async with house.working():
        house.record(1)
        while "has not taken its records yet" not in told:
            await asyncio.sleep(0.005)
            told += capsys.readouterr().out
        go_on.set()
        await until(lambda: _is_at(house, 1))
    assert "consumer=a" in told


async def test_a_look_from_before_the_cursor_moved_is_not_believed(tmp_path: Path) -> None:
    taker = Taker()
    house = House(tmp_path, {"a": taker})
    delivery, lookout = house.deliveries["a"], SqliteLookout(house.bench.layout.store)
    delivering = asyncio.create_task(delivery.run())
    delivery.looking()
    delivery.saw(lookout.look(["a"]))
    await until(house.consumer)
    house.record(2)
    delivery.looking()
    before = lookout.look(["a"])
    delivery.saw(before)
    await until(lambda: _is_at(house, 2))
    delivery.saw(before)
    delivery.finish(2)
    await asyncio.wait_for(delivering, 30)
    assert taker.taken == [1, 2]
    lookout.close()
    house.bench.core.close()

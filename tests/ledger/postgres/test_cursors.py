"""How far consumers of usage records have come, on both stores."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from headgate_gateway.admin.postgres_usage import PostgresUsage
from headgate_gateway.admin.sqlite_usage import SqliteUsage
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.lookout import Lookout, SqliteLookout
from headgate_gateway.ledger.postgres import lookout as lookout_module
from headgate_gateway.ledger.postgres.lookout import PostgresLookout
from headgate_gateway.ledger.store.contract import StoreFailed


class Store:
    """A bench on one of the stores, and what reads it."""

    def __init__(self, bench: Any, url: str | None) -> None:
        self.bench = bench
        self.url = url
        self.reader = SqliteUsage(bench.layout) if url is None else PostgresUsage(url)

    def lookout(self) -> Lookout:
        if self.url is None:
            return SqliteLookout(self.bench.layout.store)
        return PostgresLookout(self.url, self.bench.clock)

    def advance(self, consumer: str, position: int, epoch: int | None, error: str = "") -> tuple[Any, int]:
        cursor = self.bench.core.advance(wire.Advance(7, consumer, position, epoch, error))
        assert cursor.n == 7
        return cursor.position, cursor.epoch

    def records(self, count: int) -> list[int]:
        """Make some; returns their places."""
        key = self.bench.key()
        for _ in range(count):
            self.bench.settle(self.bench.admit(key).request_id, 1)
        page = asyncio.run(self.reader.records(limit=1000))
        return [record.seq for record in page.records][-count:]


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "sqlite":
        yield Store(request.getfixturevalue("bench"), None)
    else:
        new = request.getfixturevalue("new_postgres_bench")
        bench = new()
        yield Store(bench, bench.url)


def test_a_cursor_begins_once_and_goes_only_forward(store: Store) -> None:
    position, epoch = store.advance("a", 10, None)
    assert position == 10
    assert store.advance("a", 99, None) == (10, epoch), "it was begun before"
    assert store.advance("a", 12, epoch) == (12, epoch)
    assert store.advance("a", 11, epoch) == (12, epoch)
    assert store.advance("a", 13, epoch + 1) == (12, epoch), "of another epoch"
    assert store.advance("b", 13, epoch) == (None, 0), "never begun"


def test_a_cursor_that_was_set_by_hand_is_not_moved_by_who_was_under_way(store: Store) -> None:
    _, before = store.advance("a", 10, None)
    store.bench.clock.us += 1
    assert isinstance(store.bench.do(c.MoveCursor(consumer="a", position=0)), c.Done)
    position, epoch = store.advance("a", 12, before)
    assert position == 0
    assert epoch != before
    assert store.advance("a", 5, epoch) == (5, epoch)
    store.bench.clock.us += 1
    assert isinstance(store.bench.do(c.MoveCursor(consumer="a", position=None)), c.Done)
    assert store.advance("a", 6, epoch) == (None, 0)
    store.bench.clock.us += 1
    assert store.advance("a", 3, None)[1] != epoch, "who goes by the cursor of before is not believed"
    entries = asyncio.run(store.reader.log()).entries
    told = [(e.action, e.target, e.detail) for e in entries if e.action.startswith("consumer.")]
    assert told == [("consumer.reset", "a", {"position": 0}), ("consumer.remove", "a", {})]


@pytest.mark.parametrize(
    "wrong", [{"consumer": ""}, {"consumer": "a\0"}, {"position": -1}, {"position": 2**62 + 1}]
)
def test_what_no_store_could_keep_is_refused(store: Store, wrong: dict[str, Any]) -> None:
    rejected = store.bench.do(c.MoveCursor(**{"consumer": "a", "position": 1, **wrong}))
    assert isinstance(rejected, c.Rejected)
    assert rejected.field == next(iter(wrong))


def test_consumers_are_shown_with_what_they_lack(store: Store) -> None:
    places = store.records(3)
    _, epoch = store.advance("late", places[0], None)
    store.advance("late", places[0], epoch, "it is broken")
    store.advance("done", places[2], None)
    done, late = asyncio.run(store.reader.consumers())
    assert (done.name, done.position, done.behind, done.oldest_at, done.error) == ("done", places[2], 0, None, "")
    assert (late.name, late.position, late.behind, late.error) == ("late", places[0], 2, "it is broken")
    second = asyncio.run(store.reader.records(after=places[0], limit=1)).records[0]
    assert late.oldest_at == second.finished_at
    assert asyncio.run(store.reader.last()) == places[2]
    store.advance("late", places[1], epoch)
    assert [c.error for c in asyncio.run(store.reader.consumers())] == ["", ""]


def test_a_lookout_sees_records_and_cursors(store: Store) -> None:
    lookout = store.lookout()
    view = lookout.look(["a"])
    assert (view.last, dict(view.cursors), view.mine) == (0, {}, {"a"})
    places = store.records(2)
    _, epoch = store.advance("a", places[0], None)
    view = lookout.look(["a"])
    assert (view.last, dict(view.cursors)) == (places[1], {"a": (places[0], epoch)})
    lookout.close()


def test_one_node_at_a_time_has_a_consumers_turn(new_postgres_bench: Any) -> None:
    bench = new_postgres_bench()
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(contextlib.closing(PostgresLookout(bench.url, bench.clock))) for _ in range(2)
        )
        assert first.look(["a"]).mine == {"a"}
        assert second.look(["a", "b"]).mine == {"b"}
        assert first.look(["a", "b"]).mine == {"a"}
        with psycopg.connect(bench.url, autocommit=True) as db:  # as when a machine is cut off
            held = "FROM pg_locks WHERE locktype = 'advisory' AND objid = %s"
            db.execute(f"SELECT pg_terminate_backend(pid) {held}".encode(), (_objid("a"),))
            while db.execute(f"SELECT count(*) {held}".encode(), (_objid("a"),)).fetchone() != (0,):
                pass
        assert second.look(["a", "b"]).mine == {"a", "b"}
        with pytest.raises(StoreFailed):
            first.look(["a", "b"])
        assert first.look(["a", "b"]).mine == set()


def test_a_turn_passes_on_when_its_holder_is_silent(
    new_postgres_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout_module, "SILENT_S", 1)
    bench = new_postgres_bench()
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(contextlib.closing(PostgresLookout(bench.url, bench.clock))) for _ in range(2)
        )
        assert first.look(["a"]).mine == {"a"}
        while second.look(["a"]).mine != {"a"}:
            pass
        with pytest.raises(StoreFailed):
            first.look(["a"])
        assert first.look(["a"]).mine == set()


def _objid(consumer: str) -> int:
    import zlib

    return (zlib.crc32(consumer.encode()) - 2**31) % 2**32


def test_a_full_disk_moves_no_cursor(bench: Any) -> None:
    cursor = bench.core.advance(wire.Advance(1, "a", 1, None))
    bench.core.full = True
    with pytest.raises(StoreFailed, match="full"):
        bench.core.advance(wire.Advance(2, "a", 2, cursor.epoch))
    bench.core.full = False
    assert bench.core.advance(wire.Advance(3, "a", 2, cursor.epoch)).position == 2

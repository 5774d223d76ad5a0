"""Batches: all or nothing; one bad operation alone is refused; on a full disk open requests end."""

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import Writes
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.core import Core
from headgate_gateway.ledger.reserve import Reserve
from headgate_gateway.ledger.store import StoreBroken, StoreFailed, StoreRefused, sqlite
from headgate_gateway.ledger.store.sqlite import HEAD, SqliteStore, prepare, revision

ZEROS = (0,) * 9


def admit(bench: Any, key: str, request_id: str, most: int = 10, **more: Any) -> wire.Admit:
    return wire.Admit(
        1, request_id, key, "m", "chat", ZEROS, most, most, False, 2**62, **more
    )  # fmt: skip


def settle(request_id: str, output: int, **more: Any) -> wire.Settle:
    return wire.Settle(1, request_id, (0, 0, 0, output, 0, 0, 0, 0, 0), "upstream", "ok", "echo", **more)


def test_one_batch_is_exact_within_itself(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000025/total")
    replies = bench.run(*(admit(bench, key, f"req_{n}") for n in range(4)))
    assert [type(reply) for reply in replies] == [wire.Grant, wire.Grant, wire.Denied, wire.Denied]
    replies = bench.run(
        settle("req_0", 1), admit(bench, key, "req_5"), wire.Void(1, "req_5"), settle("req_1", 10)
    )
    assert [type(reply) for reply in replies] == [wire.Recorded, wire.Grant, wire.Recorded, wire.Recorded]


def test_a_settlement_twice_in_one_batch_is_one(bench: Any) -> None:
    bench.price()
    key = bench.key()
    bench.run(admit(bench, key, "req_1"))
    first, second, void = bench.run(settle("req_1", 3), settle("req_1", 9), wire.Void(1, "req_1"))
    assert first == second
    assert (first.cost, void.cost) == (3, 3)


def test_a_replay_in_the_batch_of_its_settlement(bench: Any) -> None:
    bench.price()
    key = bench.key()
    claim: dict[str, Any] = {"claim": "k", "fingerprint": b"f"}
    bench.run(admit(bench, key, "req_1", **claim))
    _, replay = bench.run(settle("req_1", 3, answer=b"x"), admit(bench, key, "req_2", **claim))
    assert (replay.answer, replay.cost) == (b"x", 3)


def test_values_that_no_store_could_keep_are_refused_alone(bench: Any) -> None:
    bench.price()
    key = bench.key()
    good = admit(bench, key, "req_good")
    bad = [
        admit(bench, key, "req_huge", most=10**13),
        admit(bench, key, "req_nul", claim="a\0b", fingerprint=b""),
        admit(bench, key, "req_tags", tags={str(n): "" for n in range(17)}),
    ]
    replies = bench.run(*bad, good)
    assert [type(reply) for reply in replies] == [wire.Failed] * 3 + [wire.Grant]
    recorded = bench.settle("req_good", 10**18, source="a\0b", backend="x" * 1000)
    assert recorded.cost == 10


@pytest.mark.parametrize("rates", [{"input": "9000000000"}, {"output": "9000000000"}])
def test_a_request_that_could_cost_more_than_can_be_counted_is_refused(bench: Any, rates: dict[str, str]) -> None:
    bench.price(**rates)
    key = bench.key()
    assert isinstance(bench.admit(key, 1_000_000, prompt=1_000_000), wire.Grant)
    refused = bench.admit(key, 1_100_000, prompt=1_100_000).refused
    assert refused.code == "request_exceeds_budget"
    assert refused.message == "the request could cost more than can be counted"


class Broken:
    """A store that fails when a record of one request is in the batch."""

    def __init__(self, store: SqliteStore, error: Exception) -> None:
        self._store = store
        self._error = error
        self.broken = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, writes: Writes, at_us: int) -> None:
        if self.broken and "req_bad" in writes.holds:
            raise self._error
        self._store.commit(writes, at_us)


def broken_core(bench: Any, error: Exception) -> Broken:
    store = Broken(bench.core._store, error)
    bench.core = Core(store, bench.clock, bench.ids)
    return store


def test_an_operation_that_the_store_refuses_fails_alone(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000030/total")
    broken_core(bench, StoreRefused("no"))
    replies = bench.run(*(admit(bench, key, f"req_{name}") for name in ("a", "bad", "b")))
    assert [type(reply) for reply in replies] == [wire.Grant, wire.Failed, wire.Grant]
    assert bench.budgets(key)["total"].held == 20


def test_a_failed_batch_leaves_no_trace(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000030/total", rpm=3)
    store = broken_core(bench, StoreFailed("no"))
    replies = bench.run(*(admit(bench, key, f"req_{name}") for name in ("a", "bad", "b")))
    assert {reply.refused.code for reply in replies} == {"ledger_unavailable"}
    assert bench.budgets(key)["total"].held == 0
    store.broken = False
    replies = bench.run(*(admit(bench, key, f"req_{name}") for name in ("a", "bad", "b")))
    assert [type(reply) for reply in replies] == [wire.Grant] * 3


def test_a_price_that_a_margin_cannot_follow_is_not_set(bench: Any) -> None:
    bench.price(output="1")
    key = bench.key()
    bench.do(c.SetPrice(model="m", rates={"margin": "900%"}, scope=key))
    before = bench.core.prices()
    other = wire.Run(2, c.SetPrice(model="other", rates={"output": "1"}))
    dear = wire.Run(1, c.SetPrice(model="m", rates={"output": "9000000000"}))
    rejected, done = (reply.result for reply in bench.run(dear, other))
    assert isinstance(rejected, c.Rejected)
    assert f"beyond what can be kept, for {key}" in rejected.message
    assert isinstance(done, c.PricesSet)
    bench.restart()
    assert bench.core.prices() == [*before, *(v for v in bench.core.prices() if v.model == "other")]
    assert len(bench.core.state.prices.versions) == 3


def test_a_broken_store_ends_the_ledger(bench: Any) -> None:
    key = bench.key()
    broken_core(bench, StoreBroken("input/output error"))
    with pytest.raises(StoreBroken):
        bench.run(admit(bench, key, "req_bad"))
    bench.core.reload()


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_a_store_that_cannot_be_read_loses_no_settlement(bench: Any, for_good: bool) -> None:
    bench.price()
    key = bench.key("1/total")
    held = bench.admit(key, claim="again", fingerprint=b"f").request_id
    steps = iter([1] if not for_good else [1] * 1_000_000)
    db = bench.core._store._db
    db.set_progress_handler(lambda: next(steps, 0), 1)  # what is read fails
    if for_good:
        with pytest.raises(StoreBroken):
            bench.settle(held, 7)
        db.set_progress_handler(None, 1)
        bench.core.reload()
    else:
        failed = bench.settle(held, 7)
        assert isinstance(failed, wire.Failed)
        assert failed.code == "unavailable"  # so that it is sent again
    assert bench.settle(held, 7).cost == 7


def test_on_a_full_disk_open_requests_end_and_none_begins(bench: Any, tmp_path: Path) -> None:
    bench.price()
    key = bench.key("1/total")
    reserve = Reserve(tmp_path / "reserve", 1 << 16)
    assert reserve.fill()
    bench.core = Core(bench.core._store, bench.clock, bench.ids, reserve)
    held = [bench.admit(key).request_id for _ in range(20)]
    db = bench.core._store._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    refused = None
    while refused is None:
        reply = bench.admit(key, tags={str(n): "x" * 256 for n in range(16)})
        if isinstance(reply, wire.Denied):
            refused = reply.refused
        else:
            held.append(reply.request_id)
    assert refused.code == "ledger_unavailable"
    assert bench.core.full
    assert not reserve.free()
    db.execute("PRAGMA max_page_count = 1000000")  # what the reserve's room is for
    replies = bench.run(admit(bench, key, "req_new"), *(settle(request_id, 1) for request_id in held))
    assert isinstance(replies[0], wire.Denied)
    assert {reply.cost for reply in replies[1:]} == {1}
    bench.core.refill()
    assert isinstance(bench.admit(key), wire.Grant)


def test_the_schema_is_made_once_and_copied_before_a_change(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    assert revision(path) is None
    prepare(path)
    assert revision(path) == HEAD
    before = path.stat().st_mtime_ns
    prepare(path)
    assert path.stat().st_mtime_ns == before


def test_the_copy_before_a_change_has_what_a_killed_ledger_had_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "running.sqlite", chain_key(b"p" * 32))
    store._db.execute("INSERT INTO claims VALUES ('p', 'k', x'', 'req_1', 'spent', 1, 0)")
    path = tmp_path / "killed.sqlite"
    for suffix in ("", "-wal"):
        shutil.copy2(tmp_path / f"running.sqlite{suffix}", tmp_path / f"killed.sqlite{suffix}")
    store.close()
    monkeypatch.setattr(sqlite, "HEAD", "9999")
    with contextlib.closing(sqlite3.connect(path)) as reader:  # who reads keeps the log from going into the file
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM claims").fetchall()
        prepare(path)
    copy = tmp_path / "killed.sqlite.before-9999"
    assert copy.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT count(*) FROM claims").fetchone() == (1,)


def test_a_store_of_a_later_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "later.sqlite"
    SqliteStore(path, chain_key(b"p" * 32)).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE alembic_version SET version_num = '0099'")
        db.commit()
    before = path.read_bytes()
    with pytest.raises(StoreFailed, match="has schema 0099, and this program knows"):
        SqliteStore(path, chain_key(b"p" * 32))
    assert (path.read_bytes(), [each.name for each in tmp_path.iterdir()]) == (before, ["later.sqlite"])


def test_the_schema_is_what_the_tables_say(tmp_path: Path) -> None:
    import sqlalchemy as sa
    from headgate_gateway.ledger.store import schema

    SqliteStore(tmp_path / "x.sqlite", chain_key(b"x")).close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.sqlite'}")
    found = sa.inspect(engine)
    assert set(found.get_table_names()) - {"alembic_version"} == set(schema.metadata.tables)
    for name, table in schema.metadata.tables.items():
        columns = {
            column["name"]: (str(column["type"]), column["nullable"]) for column in found.get_columns(name)
        }
        expected = {
            column.name: (str(column.type.compile(engine.dialect)), bool(column.nullable)) for column in table.c
        }
        assert columns == expected
        assert found.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key]
    engine.dispose()


def test_a_commit_is_synced(bench: Any) -> None:
    db = bench.core._store._db
    found = [db.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")]
    assert found == [("wal",), (2,)]  # FULL: with less, WAL is synced at checkpoints only


def test_the_ledgers_time_never_runs_backwards(bench: Any) -> None:
    bench.price()
    key = bench.key()
    first = bench.admit(key).request_id
    bench.clock.us -= 3600 * 10**6
    late = wire.Admit(1, "req_x", key, "m", "chat", ZEROS, 0, 0, False, bench.clock.us + 1)
    assert isinstance(bench.run(late)[0], wire.Grant)
    bench.settle(first, 1)
    head = bench.core.state.head
    bench.restart()
    assert bench.core.state.head.at_us == head.at_us
    assert bench.core.state.head == head


def test_a_one_pass_answer_that_is_gone_runs_again_free_three_times(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000010/total")
    claim: dict[str, Any] = {"claim": "k", "fingerprint": b"f", "task": "embed"}
    first = bench.admit(key, 10, **claim)
    bench.settle(first.request_id, 10)
    for _ in range(3):
        again = bench.admit(key, 10, **claim)
        assert (again.retry_of, again.held, again.price) == (first.request_id, 0, None)
        assert bench.settle(again.request_id, 10).cost == 0
    assert bench.admit(key, 10, **claim).refused.code == "idempotency_consumed"
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        assert db.execute("SELECT billed FROM usage_records ORDER BY seq").fetchall() == [(1,), (0,), (0,), (0,)]


def test_a_one_pass_answer_that_is_gone_for_ten_minutes_does_not_run_again(bench: Any) -> None:
    bench.price()
    key = bench.key()
    claim: dict[str, Any] = {"claim": "k", "fingerprint": b"f", "task": "embed"}
    bench.settle(bench.admit(key, 10, **claim).request_id, 10)
    bench.clock.us += 600 * 1_000_000 - 1
    assert isinstance(bench.admit(key, 10, **claim), wire.Grant)
    bench.clock.us += 1
    assert bench.admit(key, 10, **claim).refused.code == "idempotency_consumed"


def test_memory_after_a_restart_is_what_it_was(new_bench: Callable[[str], Any]) -> None:
    bench = new_bench("again")
    bench.price(input="0.0002", output="0.0015")
    noise = random.Random(3)
    keys = [bench.key("0.0001/day", rpm=1000, project=f"p{n}") for n in range(5)]
    bench.do(c.SetBudget(account="default", amount="0.001", window="month"))
    for _ in range(100):
        reply = bench.admit(noise.choice(keys), noise.randrange(50), prompt=noise.randrange(50))
        if isinstance(reply, wire.Grant) and noise.random() < 0.7:
            bench.settle(reply.request_id, noise.randrange(60))

    def memory() -> tuple[Any, ...]:
        state = bench.core.state
        return (
            state.head,
            {w.id: [getattr(w, name) for name in w.__slots__] for w in state.windows.values()},
            state.holds,
            {a.id: (a.in_flight, a.requests and a.requests.tat, a.concurrency) for a in state.accounts.values()},
            state.prices.versions,
            state.prices.ahead,
        )

    before = memory()
    bench.restart()
    assert memory() == before
    bench.core.close()


def test_a_budget_that_was_lifted_and_set_again_starts_at_nothing_after_a_restart_too(bench: Any) -> None:
    bench.price()
    key = bench.key("0.00000002/total")
    bench.settle(bench.admit(key, 20).request_id, 20)
    for amount in (None, "0.00000002"):
        bench.do(c.SetBudget(account=key, amount=amount, window="total"))
    bench.restart()
    assert isinstance(bench.admit(key, 5), wire.Grant)
    bench.do(c.SetBudget(account=key, amount="0.00000003", window="total"))
    bench.restart()
    assert bench.budgets(key)["total"].held == 5

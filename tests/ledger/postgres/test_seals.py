"""Seals over the chains of several nodes, and every byte of history on PostgreSQL."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import rows, wire
from headgate_gateway.ledger.postgres import schema
from headgate_gateway.ledger.postgres.history import PostgresHistory
from psycopg.pq import TransactionStatus

from tests.ledger.postgres.nodes import NewBench, two_nodes
from tests.ledger.tampering import changed

DAY = 86_400 * 1_000_000

NOT_COVERED = {"position", "seq"}
"""Columns that only order rows: where an order matters, what is ordered is covered."""


def work(benches: list[Any], key: str) -> None:
    """Requests on every node, on the same windows, and commands."""
    for n, bench in enumerate(benches):
        granted = bench.admit(key, 100, prompt=50)
        benches[n - 1].settle(granted.request_id, 10 * n, prompt=50)
        bench.run(wire.Void(1, bench.admit(key, 7).request_id))
        bench.do(c.SetBudget(account="p", amount=f"0.5{n}", window="month"))


def later(benches: list[Any], us: int) -> None:
    for bench in benches:
        bench.clock.us += us


def alike(bench: Any) -> tuple[Any, Any]:
    full, quick = bench.audit(full=True), bench.audit(full=False)
    assert full.ok, full.first_difference
    assert quick.ok, quick.first_difference
    return full, quick


def test_an_audit_of_all_chains_begins_at_the_last_seal(new_postgres_bench: NewBench) -> None:
    benches, key = two_nodes(new_postgres_bench)
    first, second = benches
    work(benches, key)
    ends, grows = (first.admit(key, 5000, stream=True, least=1).request_id for _ in range(2))
    later(benches, DAY)
    assert second.seal() == 4
    second.settle(ends, 700)
    second.run(wire.Extend(1, grows, 2000))
    work(benches, key)
    new_postgres_bench("c", seed=9).settle(grows, 1800)  # a chain that the seal does not know
    full, quick = alike(first)
    assert quick.began.startswith("seal 1 of ")
    assert (full.checked["usage_records"], quick.checked["usage_records"]) == (6, 4)
    later(benches, DAY)
    first.seal()
    work(benches, key)
    full, quick = alike(second)
    assert quick.began.startswith("seal 2 of ")
    assert full.checked["agreeing seals"] == 2
    assert quick.checked["usage_records"] == 2


def test_slices_hold_no_snapshot_and_balances_are_one(
    new_postgres_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches, key = two_nodes(new_postgres_bench)
    work(benches, key)
    seen: list[str] = []

    def watched(name: str) -> None:
        real = getattr(PostgresHistory, name)

        def read(self: PostgresHistory, *given: Any) -> Any:
            idle = self._db.info.transaction_status is TransactionStatus.IDLE
            seen.append(f"{name} {'alone' if idle else 'together'}")
            return real(self, *given)

        monkeypatch.setattr(PostgresHistory, name, read)

    for name in ("links", "rows", "prices", "holds", "windows", "more"):
        watched(name)
    assert benches[0].audit(full=True).ok
    first = next(n for n, what in enumerate(seen) if what.endswith("together"))
    assert all(what.endswith("together") for what in seen[first:])
    assert set(seen[:first]) == {"links alone", "rows alone", "prices alone"}
    assert {"holds together", "windows together", "more together", "links together"} <= set(seen[first:])


def test_it_is_right_while_nodes_write(new_postgres_bench: NewBench) -> None:
    benches, key = two_nodes(new_postgres_bench)
    done = threading.Event()
    reports: list[Any] = []

    def audits() -> None:
        while not done.is_set():
            reports.extend(benches[0].audit(full=full) for full in (True, False))

    auditor = threading.Thread(target=audits)
    auditor.start()
    try:
        for n in range(6):
            work(benches, key)
            if n % 2:
                benches[1].seal()
    finally:
        done.set()
        auditor.join()
    assert {(report.ok, report.first_difference) for report in reports} == {(True, None)}


def test_one_node_makes_a_seal_at_a_time(new_postgres_bench: NewBench) -> None:
    benches, _ = two_nodes(new_postgres_bench)
    with benches[0].history() as one, benches[1].history() as other:
        assert one.alone()
        assert not other.alone()
        assert one.unsealed_since() == benches[0].clock.us
    with benches[1].history() as other:
        assert other.alone()


@contextlib.contextmanager
def unguarded(db: psycopg.Connection, table: str) -> Iterator[None]:
    db.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
    yield
    db.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())


@pytest.mark.parametrize("table", [table for table in schema.APPEND_ONLY if table != "archives"])
def test_every_byte_of_history_is_found(new_postgres_bench: NewBench, table: str) -> None:
    """A column before the seal by an audit from the beginning, the next one after it by one from the seal."""
    benches, key = two_nodes(new_postgres_bench)
    work(benches, key)
    benches[0].price("other", output="0.1")
    benches[0].seal()
    work(benches, key)
    benches[0].price("another", output="0.1")
    if table in ("seals", "links"):
        benches[0].seal()
    alike(benches[0])
    order = "number" if table == "links" else "seq" if table in ("prices", "seals", "voids") else "batch"
    with psycopg.connect(benches[0].url, autocommit=True) as db:
        columns = [column.name for column in db.execute(f"SELECT * FROM {table}".encode()).description or ()]
        assert set(rows.CHAINED.get(table, ())) <= set(columns)
        for n, column in enumerate(columns):
            if column in NOT_COVERED and (table, column) != ("usage_records", "seq"):
                continue
            full, way = bool(n % 2), ("DESC", "ASC")[n % 2]
            place = f"ctid = (SELECT ctid FROM {table} WHERE chain = 1 ORDER BY {order} {way} LIMIT 1)"
            update = f"UPDATE {table} SET {column} = %s WHERE {place} RETURNING ctid::text"
            (value,) = db.execute(f"SELECT {column} FROM {table} WHERE {place}".encode()).fetchone() or ()
            with unguarded(db, table):
                found = db.execute(
                    update.encode(), (value + 1 if column == "cost" else changed(value),)
                ).fetchone()
            report = benches[0].audit(full=full)
            with unguarded(db, table):
                back = f"UPDATE {table} SET {column} = %s WHERE ctid = %s::tid"
                db.execute(back.encode(), (value, (found or ())[0]))
            assert not report.ok, (table, column)
            named = str(report.first_difference)
            assert table in named or "link" in named or "usage record" in named, named
    alike(benches[0])


def test_a_row_of_no_chain_is_found(new_postgres_bench: NewBench) -> None:
    benches, key = two_nodes(new_postgres_bench)
    work(benches, key)
    values = ", ".join(
        "request_id || 'x'" if name == "request_id" else name for name in ("seq", "batch", *rows.RECORD[2:])
    )
    with psycopg.connect(benches[0].url, autocommit=True) as db:
        db.execute(
            f"INSERT INTO usage_records (chain, position, {', '.join(rows.RECORD)}, digest) "
            f"SELECT 9, position, {values}, digest FROM usage_records WHERE chain = 1 LIMIT 1".encode()
        )
        for full in (True, False):
            assert (
                benches[0].audit(full=full).first_difference
                == "usage_records has rows of chain 9, which is not there"
            )
        with unguarded(db, "usage_records"):
            db.execute("DELETE FROM usage_records WHERE chain = 9")


@pytest.mark.parametrize(
    ("change", "back", "named"),
    [
        (
            "ALTER TABLE seals DISABLE TRIGGER seals_append_only",
            "ALTER TABLE seals ENABLE TRIGGER seals_append_only",
            "the trigger that makes seals append-only",
        ),
        (
            "ALTER TABLE windows DROP CONSTRAINT windows_within_cap, "
            "ADD CONSTRAINT windows_within_cap CHECK (true)",
            "ALTER TABLE windows DROP CONSTRAINT windows_within_cap, "
            "ADD CONSTRAINT windows_within_cap CHECK (spent + held <= cap)",
            "the CHECK windows_within_cap is missing",
        ),
    ],
)
def test_a_guard_that_does_nothing_is_named(
    new_postgres_bench: NewBench, change: str, back: str, named: str
) -> None:
    bench = new_postgres_bench()
    with psycopg.connect(bench.url, autocommit=True) as db:
        db.execute(change.encode())
        assert named in str(bench.audit(full=False).first_difference)
        db.execute(back.encode())

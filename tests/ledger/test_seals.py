"""Seals: an audit that begins at one says the same as one from the beginning, and reads nothing before it."""

import asyncio
import contextlib
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import audit as audit_module
from headgate_gateway.ledger import rows, seal, sealing, wire
from headgate_gateway.ledger.book import Hold
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.packing import pack
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.store import recent
from headgate_gateway.ledger.store.read_only import open_readonly
from headgate_gateway.ledger.store.sqlite import HEAD

from tests.ledger.older import make_older
from tests.ledger.tampering import changed, unguarded

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR
NewBench = Callable[[str], Any]


def begin(bench: Any) -> str:
    """A key with budgets of several kinds, credit and limits."""
    bench.price(input="0.0002", output="0.0015")
    key: str = bench.key("0.01/day", rpm=10_000, tpm=10_000_000)
    bench.do(c.SetBudget(account="p", amount="0.5", window="month"))
    bench.do(c.GrantCredit(account="default", amount="0.4"))
    bench.do(c.GrantCredit(account="default", amount="0.00000001", priority=1))
    return key


def work(bench: Any, key: str, requests: int = 4) -> None:
    """A little of everything; nothing stays open."""
    for n in range(requests):
        granted = bench.admit(key, 100, prompt=50, claim=bench.ids.request(), fingerprint=b"f")
        bench.settle(granted.request_id, 10 * n, prompt=50)
    bench.run(wire.Void(1, bench.admit(key, 7).request_id))
    bench.do(c.SetBudget(account="p", amount=f"0.5{bench.n}", window="month"))


def alike(bench: Any, ok: bool = True) -> tuple[Any, Any]:
    """Both audits, which must agree."""
    full, quick = bench.audit(full=True), bench.audit(full=False)
    assert full.ok == quick.ok == ok, (full.first_difference, quick.first_difference)
    return full, quick


def test_an_audit_begins_at_the_last_seal(bench: Any) -> None:
    key = begin(bench)
    work(bench, key)
    assert bench.seal() == 4  # where the chain stood; prices; limits; windows
    work(bench, key, 2)
    full, quick = alike(bench)
    assert full.began == "the beginning"
    assert quick.began == "seal 1 of 2026-11-18T11:06:40Z"
    assert (full.checked["usage_records"], quick.checked["usage_records"]) == (6, 2)
    assert (full.checked["agreeing seals"], full.checked["seals"], quick.checked["seals"]) == (1, 4, 4)


def test_requests_that_were_open_end_after_the_seal(bench: Any) -> None:
    key = begin(bench)
    ends, grows, stays, voided = (bench.admit(key, 5000, stream=True, least=1).request_id for _ in range(4))
    bench.run(wire.Extend(1, grows, 2000))
    bench.seal()
    alike(bench)
    bench.settle(ends, 700)
    bench.run(wire.Extend(1, grows, 3000), wire.Extend(2, stays, 1500))
    bench.settle(grows, 2500)
    bench.run(wire.Void(1, voided))
    _, quick = alike(bench)
    assert (quick.checked["usage_records"], quick.checked["voids"], quick.checked["open holds"]) == (2, 1, 1)
    bench.seal()
    bench.clock.us += 40 * DAY  # all its windows but the credit's have ended
    bench.settle(stays, 9)
    bench.seal()
    work(bench, key)
    alike(bench)


def test_a_price_that_was_withdrawn_is_known_for_what_had_pinned_it(bench: Any) -> None:
    key = begin(bench)
    early = bench.admit(key, 10)
    bench.price(output="0.002")
    bench.price(output="0.003")
    bench.seal()
    bench.settle(early.request_id, 10)
    bench.settle(bench.admit(key, 10).request_id, 10)
    alike(bench)


class Counting(sqlite3.Connection):
    """Counts the rows that are read, and asks `watch` before each statement."""

    rows = 0
    watch: Callable[[Any], None] = staticmethod(lambda db: None)

    def execute(self, *given: Any) -> Any:
        self.watch(self)
        found = super().execute(*given)
        if given[0] == "BEGIN":
            return found
        Counting.rows += len(fetched := found.fetchall())
        return _Fetched(fetched)


class _Fetched(list[Any]):
    def fetchall(self) -> list[Any]:
        return self

    def fetchone(self) -> Any:
        return self[0] if self else None


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    def connect(path: Path) -> Counting:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, factory=Counting)

    monkeypatch.setattr(audit_module, "open_readonly", connect)
    monkeypatch.setattr(Counting, "watch", staticmethod(lambda db: None))
    return Counting


def test_what_it_reads_does_not_grow_with_the_history_before(
    bench: Any, counting: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "SLOTS", 8)  # the ring is full from the first round on
    key = begin(bench)
    read: dict[bool, list[int]] = {True: [], False: []}
    for _ in range(7):
        bench.clock.us += DAY
        work(bench, key, 20)
        bench.seal()
        work(bench, key, 3)
        for full in read:
            counting.rows = 0
            assert bench.audit(full=full).ok
            read[full].append(counting.rows)
    steady = read[False][4:]  # by then there is a seal that is older than an idempotency key lives
    assert max(steady) == min(steady), read
    assert read[True][-1] > read[True][0] * 3
    assert steady[-1] < read[True][-1] / 2


def test_slices_pin_no_log_and_balances_are_one_read(
    bench: Any, counting: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every statement but those of the last read the log can be reset: nobody is reading."""
    key = begin(bench)
    work(bench, key)
    bench.seal()
    work(bench, key)
    seen: list[bool] = []
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as writer:

        def watch(db: Any) -> None:
            seen.append(db.in_transaction)
            if not db.in_transaction:
                busy, *_ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                assert not busy

        monkeypatch.setattr(Counting, "watch", staticmethod(watch))
        assert bench.audit(full=True).ok
    first = seen.index(True)
    assert all(seen[first:])
    assert first > 20


def test_it_is_right_while_the_ledger_writes(bench: Any) -> None:
    key = begin(bench)
    done = threading.Event()
    reports: list[Any] = []

    def audits() -> None:
        while not done.is_set():
            reports.extend(bench.audit(full=full) for full in (True, False))

    auditor = threading.Thread(target=audits)
    auditor.start()
    try:
        for n in range(12):
            work(bench, key)
            if n % 4 == 2:
                bench.seal()
    finally:
        done.set()
        auditor.join()
    assert {(report.ok, report.first_difference) for report in reports} == {(True, None)}


def test_a_day_is_sealed_once(bench: Any) -> None:
    key = begin(bench)

    def due(after: int) -> bool:
        with bench.history() as history:
            return sealing.due(history, bench.clock.us + after)

    assert [due(0), due(12 * HOUR), due(13 * HOUR), due(5 * DAY)] == [False, False, True, True]
    bench.clock.us += 13 * HOUR
    bench.seal()
    assert [due(0), due(23 * HOUR), due(DAY)] == [False, False, True]
    work(bench, key)
    assert not due(0)


def test_an_idempotency_key_that_was_billed_before_the_seal(new_bench: NewBench) -> None:
    bench = new_bench("twice")
    key = begin(bench)
    for _ in range(3):
        bench.clock.us += DAY
        work(bench, key)
        bench.seal()
    again: dict[str, Any] = {"claim": "k", "fingerprint": b"f"}
    bench.settle(bench.admit(key, 5, **again).request_id, 5)
    bench.clock.us += HOUR
    bench.seal()
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as db:
        db.execute("DELETE FROM claims")
    bench.clock.us += HOUR
    bench.settle(bench.admit(key, 5, **again).request_id, 5)
    for report in alike(bench, ok=False):
        assert "idempotency claim had been billed before" in report.first_difference
    bench.core.close()


def test_what_differs_is_not_sealed(new_bench: NewBench) -> None:
    bench = new_bench("differs")
    work(bench, begin(bench))
    bench.core.close()
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as db:
        db.execute("UPDATE windows SET spent = spent + 1, cap = cap + 1 WHERE id = 1")
    bench.core = bench._open()
    with pytest.raises(Differs, match=r"window 1 .* says spent"):
        bench.seal()
    bench.core.close()


# -- tampering


def columns() -> Iterator[tuple[str, str]]:
    """Every column of every append-only table, as the schema has them; `test_archiving` has those of archives."""
    for table, names in rows.CHAINED.items():
        if table == "archives":
            continue
        yield from ((table, name) for name in (*names, "digest"))
    yield "voids", "seq"
    yield from (
        ("links", name) for name in ("number", "at_us", "admitted", "extended", "recorded", "voided", "link")
    )


@pytest.fixture(scope="module")
def sealed_store(tmp_path_factory: pytest.TempPathFactory, bench_class: Any) -> Any:
    """A store with two days of everything, a seal between them and one after, and something open."""
    bench = bench_class(tmp_path_factory.mktemp("sealed") / "data")
    key = begin(bench)
    for _ in range(2):
        work(bench, key)
        bench.price("other", output="0.1")
        bench.admit(key, 20)
        bench.settle(bench.admit(key, 5, claim=f"k{bench.clock.us}", fingerprint=b"f").request_id, 5)
        bench.clock.us += DAY
        bench.seal()
    bench.price("another", output="0.1")
    work(bench, key)
    bench.settle(bench.admit(key, 5, claim="k", fingerprint=b"f").request_id, 5)
    assert bench.audit(full=True).ok
    assert bench.audit(full=False).ok
    bench.core.close()
    return bench


@pytest.fixture
def copied(sealed_store: Any, tmp_path: Path, bench_class: Any) -> Any:
    """A copy of it, which may be spoilt."""
    bench = bench_class(tmp_path / "data")
    bench.core.close()
    for path in (bench.layout.store, bench.layout.data_dir / "chain.head"):
        path.write_bytes((sealed_store.layout.data_dir / path.name).read_bytes())
    return bench


@pytest.mark.parametrize(("table", "column"), list(columns()))
def test_every_byte_of_history_is_found_and_named(copied: Any, table: str, column: str) -> None:
    original = copied.layout.store.read_bytes()
    own = "batch" if table != "links" else "number"
    for which, found_by in (("min", (True,)), ("max", (True, False))):
        with unguarded(copied.layout.store) as db:
            (row,) = db.execute(f"SELECT {which}(rowid) FROM {table}").fetchone()
            batch, value = db.execute(f"SELECT {own}, {column} FROM {table} WHERE rowid = ?", (row,)).fetchone()
            new = f"1{value[1:]}" if column in ("price", "account") else changed(value)
            db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
        for full in found_by:
            report = copied.audit(full=full)
            assert not report.ok, (table, column, which)
            named = (f"{table} row {row}", f"{table} row {row + 1_000_000}", f"link {batch}", f"links {batch} to")
            assert any(name in str(report.first_difference) for name in named), report.first_difference
        copied.layout.store.write_bytes(original)


SPOILT = [
    ("DELETE FROM seals WHERE seal = 2", "link .* does not follow from its rows", False),
    ("DELETE FROM seals WHERE seal = 1", "link .* does not follow|seals row 1 is missing", True),
    ("DELETE FROM seals", "link .* does not follow", False),
    ("UPDATE seals SET body = x'98' WHERE seal = 2 AND part = 0", r"seals row \d+ \(2\) was changed", False),
    ("UPDATE seals SET mac = zeroblob(32) WHERE seal = 2", r"seals row \d+ \(2\) was changed", False),
    ("DELETE FROM links WHERE number > (SELECT max(number) - 3 FROM links)", "tail was cut off", False),
    ("DELETE FROM links WHERE number <= 5", "links 1 to 5 of the chain are missing", True),
    ("DELETE FROM usage_records WHERE seq = 2", "usage_records row 2 is missing|link .* covers", True),
    ("DELETE FROM voids WHERE seq = 3", "voids row 3 is missing|link .* covers", False),
    ("DELETE FROM holds", "were admitted", False),
    ("UPDATE windows SET spent = spent - 1 WHERE kind = 'month'", "says spent", False),
    ("UPDATE windows SET kind = 'week' WHERE kind = 'month'", "not one of its account", False),
    ("UPDATE windows SET end_us = end_us + 1 WHERE kind = 'month'", "is .* there|not one of its account", False),
    ("DELETE FROM windows WHERE kind = 'month'", "is named by the history but is not there", False),
    ("UPDATE windows SET limit_id = limit_id - 1 WHERE kind = 'month'", "not one of its account", False),
]


@pytest.mark.parametrize(("sql", "difference", "full_only"), SPOILT, ids=[sql for sql, *_ in SPOILT])
def test_what_is_spoilt_is_named(copied: Any, sql: str, difference: str, full_only: bool) -> None:
    with unguarded(copied.layout.store) as db:
        assert db.execute(sql).rowcount > 0
    for full in (True,) if full_only else (True, False):
        report = copied.audit(full=full)
        assert not report.ok
        with pytest.raises(AssertionError, match=difference):
            raise AssertionError(report.first_difference)


@pytest.mark.parametrize("table", [*rows.CHAINED, "links"])
@pytest.mark.parametrize("verb", ["UPDATE", "DELETE"])
def test_a_dropped_trigger_is_named(copied: Any, table: str, verb: str) -> None:
    with contextlib.closing(sqlite3.connect(copied.layout.store)) as db:
        db.execute(f"DROP TRIGGER {table}_no_{verb.lower()}")
    report = copied.audit(full=False)
    assert report.first_difference == f"the trigger that forbids {verb} on {table} is missing"


def test_a_trigger_that_never_fires_is_named(copied: Any) -> None:
    with contextlib.closing(sqlite3.connect(copied.layout.store)) as db:
        (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'voids_no_delete'").fetchone()
        db.execute("DROP TRIGGER voids_no_delete")
        db.execute(sql.replace("WHEN", "WHEN 0 AND"))
    assert copied.audit(full=False).first_difference == "the trigger that forbids DELETE on voids is missing"


def test_a_check_that_checks_nothing_is_named(copied: Any) -> None:
    with contextlib.closing(sqlite3.connect(copied.layout.store, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, 'spent + held <= cap', '1')")
    assert copied.audit(full=False).first_difference == "the CHECK windows_within_cap is missing"


@pytest.mark.parametrize("check", ["windows_not_negative", "windows_within_cap", "records_within_hold"])
def test_a_dropped_check_is_named(copied: Any, check: str) -> None:
    with contextlib.closing(sqlite3.connect(copied.layout.store, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, ?, 'what')", (check,))
    assert copied.audit(full=False).first_difference == f"the CHECK {check} is missing"


def test_an_open_hold_that_forgets_its_windows_is_named(copied: Any) -> None:
    """The seal counted what it holds there, so that the sums alone would still be right."""
    with unguarded(copied.layout.store) as db:
        (packed,) = db.execute("SELECT packed FROM holds").fetchone()
        hold = msgspec.msgpack.decode(packed, type=Hold)
        hold.parts = []
        db.execute("UPDATE holds SET packed = ? WHERE request_id = ?", (pack(hold), hold.request_id))
    for full in (True, False):
        assert "has left no trace" in copied.audit(full=full).first_difference


def test_an_audit_falls_back_to_a_seal_that_verifies(copied: Any) -> None:
    """A forged seal cannot be begun at: it would say what the forger wants."""
    with unguarded(copied.layout.store) as db:
        db.execute("UPDATE seals SET body = zeroblob(length(body)) WHERE seal = 2")
    report = copied.audit(full=False)
    assert report.began.startswith("seal 1 ")
    assert "(2) was changed" in report.first_difference


def test_a_seal_of_which_a_part_was_never_kept_is_not_begun_at(new_bench: NewBench) -> None:
    bench = new_bench("torn")
    key = begin(bench)
    work(bench, key)
    bench.seal()
    with bench.history() as history:
        parts = sealing.make(history, chain_key(b"p" * 32))
    for part in parts[:-1]:  # then the ledger was killed
        bench.do(part)
    work(bench, key)
    assert alike(bench)[1].began.startswith("seal 1 ")
    assert bench.seal() == len(parts)
    work(bench, key)
    assert alike(bench)[1].began.startswith("seal 3 ")
    bench.core.close()


def test_a_seal_that_says_something_else_is_named(new_bench: NewBench) -> None:
    """Whoever has the pepper can make one; an audit from the beginning does not believe it."""
    for name, spoil in (
        ("open", lambda found: setattr(found, "open", found.open + 1)),
        ("seq", lambda found: setattr(found.places[0], "seq", 2)),
        ("spent", lambda found: setattr(found.windows[0], "spent", 3)),
        ("limits", lambda found: found.limits.pop()),
    ):
        bench = new_bench(name)
        work(bench, begin(bench))
        key = chain_key(b"p" * 32)
        with bench.history() as history:
            parts = sealing.make(history, key)
        found = seal.joined([seal.SealRow(**msgspec.structs.asdict(part)) for part in parts], key)
        assert found is not None
        spoil(found)
        for part in seal.parts_of(found, 1, key):
            bench.do(part)
        assert "seal 1" in bench.audit(full=True).first_difference
        bench.core.close()


def test_a_store_of_before_gets_its_seals(tmp_path: Path, bench_class: Any) -> None:
    bench = bench_class(tmp_path / "old")
    work(bench, begin(bench))
    bench.core.close()
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as db:
        make_older(db, "0001")
    bench.core = bench._open()
    assert bench.layout.store.with_name(f"headgate.sqlite.before-{HEAD}").exists()
    bench.seal()
    alike(bench)
    with contextlib.closing(open_readonly(bench.layout.store)) as db:
        plan = db.execute("EXPLAIN QUERY PLAN SELECT id FROM windows WHERE end_us > 5").fetchall()
    assert "windows_by_end" in plan[0][-1]
    bench.core.close()


def test_a_seal_is_as_old_as_what_it_seals(bench: Any) -> None:
    """Whoever makes it may have a clock that is days ahead of the ledger's, whose windows then still change."""
    key = begin(bench)
    work(bench, key)
    bench.clock.us += 3 * DAY
    with bench.history() as history:
        parts = sealing.make(history, chain_key(b"p" * 32))
    bench.clock.us -= 3 * DAY
    for part in parts:
        assert isinstance(bench.do(part), c.Done)
    work(bench, key)
    assert alike(bench)[1].began == "seal 1 of 2026-11-18T11:06:40Z"


async def test_a_seal_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 1000\n")
    hangs.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(sealing, "LONGEST_S", 0.1)
    before = psutil.Process().children()
    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            await sealing._run_apart(tmp_path)
    assert psutil.Process().children() == before

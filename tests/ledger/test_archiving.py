"""Archiving: what lies before a seal goes into files, leaves the store, and is still accounted for."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.admin.sqlite_usage import SqliteUsage
from headgate_gateway.domain import commands as c
from headgate_gateway.domain.erasing import ErasePersonal
from headgate_gateway.ledger import archiving, rows, wire
from headgate_gateway.ledger import history as history_module
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.history import SqliteHistory
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.store.read_only import open_readonly

from tests.ledger.tampering import changed, unguarded

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR
KEY = chain_key(b"p" * 32)
NewBench = Callable[[str], Any]


def begin(bench: Any) -> str:
    """A key with budgets of several kinds, credit and limits."""
    bench.price(input="0.0002", output="0.0015")
    key: str = bench.key("0.01/day", rpm=10_000)
    bench.do(c.SetBudget(account="p", amount="0.5", window="month"))
    bench.do(c.GrantCredit(account="default", amount="0.4"))
    return key


def work(bench: Any, key: str, requests: int = 4) -> None:
    """A little of everything; nothing stays open."""
    for n in range(requests):
        granted = bench.admit(key, 100, prompt=50, claim=bench.ids.request(), fingerprint=b"f")
        bench.settle(granted.request_id, 10 * n, prompt=50)
    bench.run(wire.Void(1, bench.admit(key, 7).request_id))
    bench.do(c.SetBudget(account="p", amount=f"0.5{bench.n}", window="month"))
    bench.price("other", output=f"0.{bench.n + 1}")


def days(bench: Any, key: str, count: int) -> None:
    """Days of work, each sealed at its end."""
    for _ in range(count):
        work(bench, key)
        bench.clock.us += DAY
        bench.seal()


def archive(bench: Any, folder: Path, before: int | None = None) -> list[archiving.Archived]:
    """Archive what can be, or what came before a moment."""
    before = bench.clock.us - 26 * HOUR if before is None else before
    with bench.history() as history:
        return list(
            archiving.archive_before(history, KEY, folder, before, bench.clock.us, lambda op: keep(bench, op))
        )


def keep(bench: Any, command: Any) -> None:
    result = bench.do(command)
    assert isinstance(result, c.Done), result


def sweep(bench: Any, rows_at_once: int = 1000) -> int:
    """Let the ledger delete what was archived; returns in how many steps."""
    steps = 0
    while bench.core.sweep(rows_at_once):
        steps += 1
    return steps


def counts(bench: Any) -> dict[str, int]:
    with contextlib.closing(open_readonly(bench.layout.store)) as db:
        return {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in (*rows.CHAINED, "links")}


def audits(bench: Any, folder: Path) -> tuple[Any, Any, Any]:
    """From the last seal, from the archive's end, from the beginning; all must find everything right."""
    found = bench.audit(full=False), bench.audit(full=True), bench.audit(full=True, archived=folder)
    for report in found:
        assert report.ok, report.first_difference
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archive"


def test_what_was_archived_leaves_and_can_still_be_derived(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 5)
    before = counts(bench)
    made = archive(bench, folder)
    assert [(file.seal, file.path.name) for file in made] == [
        (n, f"headgate-00000{n}.sqlite") for n in (1, 2, 3, 4)
    ]
    audits(bench, folder)  # noted, and everything is there still
    assert sweep(bench, 3) > 5
    after = counts(bench)
    left = {table: before[table] - after[table] for table in before}
    assert (left["usage_records"], left["voids"], left["prices"], left["limits"]) == (16, 4, 0, 0)
    assert left["links"] > 16
    quick, full, whole = audits(bench, folder)
    assert quick.began.startswith("seal 5 of ")
    assert full.began.startswith("the end of the archive, seal 4 of ")
    assert (full.checked["usage_records"], full.checked["agreeing seals"]) == (4, 1)
    assert whole.began == "the beginning"
    assert (whole.checked["usage_records"], whole.checked["archived files"]) == (20, 4)
    assert archive(bench, folder) == []
    bench.restart()
    days(bench, key, 2)
    assert [file.seal for file in archive(bench, folder)] == [5, 6]
    sweep(bench)
    audits(bench, folder)


def test_windows_leave_with_what_was_archived_of_them_but_not_while_something_is_held(
    bench: Any, folder: Path
) -> None:
    key = begin(bench)
    stays = bench.admit(key, 5000, stream=True, least=1).request_id

    def windows() -> list[tuple[int, int]]:
        with contextlib.closing(open_readonly(bench.layout.store)) as db:
            return db.execute("SELECT id, end_us FROM windows ORDER BY id").fetchall()

    days(bench, key, 5)
    first, _ = min(windows(), key=lambda window: window[1])
    assert len(windows()) == 5 + 2
    until_us = archive(bench, folder)[-1].until_us
    bench.restart()  # their last changes are in the ring, which is emptied into the tables
    sweep(bench, 1)
    assert sum(end_us <= until_us - rows.LATE_US for _, end_us in windows()) == 1
    assert first in dict(windows())  # what is held of it is open
    audits(bench, folder)
    bench.restart()
    bench.settle(stays, 1000)
    sweep(bench)
    assert first in dict(windows())  # its last change is in the ring
    bench.restart()
    sweep(bench)
    assert first not in dict(windows())
    audits(bench, folder)
    bench.restart()
    days(bench, key, 2)
    assert archive(bench, folder)
    sweep(bench)
    audits(bench, folder)


def test_it_numbers_on_when_all_old_rows_are_gone(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 2)
    bench.clock.us += 3 * DAY
    archive(bench, folder)
    sweep(bench)
    bench.restart()
    last = counts(bench)
    assert (last["usage_records"], last["voids"]) == (1, 1)  # what comes next is numbered from them
    work(bench, key)
    with contextlib.closing(open_readonly(bench.layout.store)) as db:
        assert db.execute("SELECT min(seq), max(seq) FROM usage_records").fetchone() == (8, 12)
        assert db.execute("SELECT min(seq), max(seq) FROM voids").fetchone() == (2, 3)
    audits(bench, folder)


def test_a_vacuum_gives_space_back_and_changes_nothing(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 5)
    work(bench, key, 200)
    bench.clock.us += DAY
    bench.seal()
    bench.clock.us += 2 * DAY
    archive(bench, folder)
    sweep(bench)
    bench.core.close()
    before = bench.layout.store.stat().st_size
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        db.execute("VACUUM")
    assert bench.layout.store.stat().st_size < before
    bench.core = bench._open()
    work(bench, key)
    bench.seal()
    audits(bench, folder)


def test_requests_that_are_open_across_archives(bench: Any, folder: Path) -> None:
    key = begin(bench)
    ends, stays, voided = (bench.admit(key, 5000, stream=True, least=1).request_id for _ in range(3))
    days(bench, key, 2)
    bench.settle(ends, 700)
    bench.run(wire.Extend(1, stays, 1500))
    days(bench, key, 3)
    assert len(archive(bench, folder)) == 4
    sweep(bench)
    audits(bench, folder)
    bench.restart()
    bench.run(wire.Void(1, voided))
    bench.settle(stays, 1200)
    days(bench, key, 2)
    archive(bench, folder)
    sweep(bench)
    audits(bench, folder)


def test_what_is_young_is_kept(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 3)
    with pytest.raises(archiving.NotYet, match=r"after 2026-11-20T09:06:40Z cannot be archived yet: idempotency"):
        archive(bench, folder, bench.clock.us - 26 * HOUR + 1)
    assert archive(bench, folder, bench.clock.us - 20 * DAY) == []
    command = archiving.KeepArchive(
        seal=2, until_us=bench.clock.us - DAY + 1, file="f", hash=b"h" * 32, size=1, left=()
    )
    assert bench.do(command).field == "until_us"
    assert counts(bench)["usage_records"] == 12


def test_what_a_consumer_has_not_had_is_kept(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 4)
    bench.do(c.MoveCursor(consumer="bills", position=100))
    bench.do(c.MoveCursor(consumer="exports", position=6))  # in the middle of the second day
    with pytest.raises(
        archiving.NotYet, match=r"after 2026-11-19T\S+ cannot be archived yet: the consumer exports"
    ):
        archive(bench, folder)
    assert [file.seal for file in archive(bench, folder, bench.clock.us - 3 * DAY - 1)] == [1]
    bench.do(c.MoveCursor(consumer="exports", position=None))
    assert [file.seal for file in archive(bench, folder)] == [2, 3]
    sweep(bench)
    audits(bench, folder)


async def test_usage_says_from_when_on_it_is_whole(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 4)
    reader = SqliteUsage(bench.layout)
    assert await reader.archived_until() is None
    everything = await reader.totals("model", bucket="1d")
    (first,) = (await reader.records(limit=1)).records
    until = archive(bench, folder)[-1].until_us
    for at_once in (0, 1, 1000):  # before, while and after they are deleted
        bench.core.sweep(at_once)
        assert await reader.archived_until() == until
        (left,) = await reader.totals("model", bucket="1d")
        assert left == everything[-1]
        assert await reader.totals("model", until=until) == ()
        assert await reader.totals("model", since=until) == await reader.totals("model")
        page = await reader.records(since=first.finished_at)
        assert [record.seq for record in page.records] == [13, 14, 15, 16]
    sweep(bench)
    assert await reader.record(first.request_id) is None
    assert len((await reader.records()).records) == 4


def test_idempotency_keys_of_before_still_hold(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 3)
    again: dict[str, Any] = {"claim": "k", "fingerprint": b"f"}
    first = bench.admit(key, 5, **again).request_id
    bench.settle(first, 5, answer=b"answer")
    bench.clock.us += 23 * HOUR
    bench.seal()
    archive(bench, folder)
    sweep(bench)
    refused = bench.admit(key, 5, **again)
    assert (refused.refused.code, refused.refused.record_id) == ("idempotency_consumed", first)
    assert bench.settle(first, 5).cost == bench.settle(first, 5).cost > 0
    bench.clock.us += 2 * DAY
    bench.seal()
    archive(bench, folder)
    sweep(bench)
    assert isinstance(bench.admit(key, 5, **again), wire.Grant)
    audits(bench, folder)


@pytest.mark.parametrize("read", range(1, 12, 2))
def test_an_audit_that_is_overtaken_begins_again(
    bench: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    """What it was about to read leaves the store between two of its slices."""
    key = begin(bench)
    days(bench, key, 4)
    real, reads = SqliteHistory.rows, 0

    def rows_(self: SqliteHistory, *given: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == read:
            archive(bench, folder)
            sweep(bench)
        return real(self, *given)

    monkeypatch.setattr(history_module, "SLICE", 2)
    monkeypatch.setattr(SqliteHistory, "rows", rows_)
    report = bench.audit(full=True)
    assert report.ok, report.first_difference
    assert reads > read
    assert report.began.startswith("the end of the archive")


# -- what may leave, and what may not


def test_triggers_let_go_of_what_is_noted_and_of_nothing_else(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 4)
    archive(bench, folder)
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as db:
        db.execute("BEGIN")
        for table in (*rows.CHAINED, "links"):
            for sql in (f"DELETE FROM {table}", f"UPDATE {table} SET digest = x''"):
                with pytest.raises(sqlite3.Error, match=r"append-only|no such column"):
                    db.execute(sql)
        (until,) = db.execute("SELECT max(until) FROM archives").fetchone()
        for table in rows.LEAVING:
            batch = "number" if table == "links" else "batch"
            assert db.execute(f"DELETE FROM {table} WHERE {batch} <= ?", (until,)).rowcount > 0
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(f"DELETE FROM {table} WHERE {batch} = (SELECT max({batch}) FROM {table})")
        db.execute("ROLLBACK")


def test_a_file_of_another_history_is_not_taken(bench: Any, folder: Path, new_bench: NewBench) -> None:
    other = new_bench("other")
    for one, name in ((bench, "a"), (other, "b")):
        key = begin(one)
        one.do(c.CreateAccount(name=name, kind="organization"))
        days(one, key, 3)
    archive(other, folder)
    other.core.close()
    with pytest.raises(
        Differs, match=r"headgate-000001\.sqlite: it is another part of the history: move it away"
    ):
        archive(bench, folder)
    assert counts(bench)["archives"] == 0
    (folder / "headgate-000001.sqlite").write_bytes(b"")
    with pytest.raises(Differs, match=r"headgate-000001\.sqlite was changed"):
        archive(bench, folder)


def test_a_history_that_differs_is_not_archived(new_bench: NewBench, folder: Path) -> None:
    bench = new_bench("differs")
    days(bench, begin(bench), 3)
    with unguarded(bench.layout.store) as db:
        db.execute("UPDATE usage_records SET cost = cost + 1 WHERE seq = 2")
    with pytest.raises(Differs, match=r"headgate-000001\.partial: usage_records row 2 .* was changed"):
        archive(bench, folder)
    assert list(folder.iterdir()) == []
    assert counts(bench)["archives"] == 0
    bench.core.close()


def test_a_whole_file_of_a_killed_run_is_taken(bench: Any, folder: Path) -> None:
    key = begin(bench)
    days(bench, key, 3)

    def killed(command: Any) -> None:
        raise KeyboardInterrupt

    with bench.history() as history, pytest.raises(KeyboardInterrupt):
        list(archiving.archive_before(history, KEY, folder, bench.clock.us - 26 * HOUR, bench.clock.us, killed))
    (path,) = folder.iterdir()
    (folder / "headgate-000001.partial").write_bytes(b"half")
    found = path.read_bytes()
    archive(bench, folder)
    assert path.read_bytes() == found
    sweep(bench)
    audits(bench, folder)


def test_a_disk_that_is_full_leaves_nothing_half(bench: Any, folder: Path) -> None:
    days(bench, begin(bench), 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, hard))
    try:
        with pytest.raises(OSError, match=r"headgate-000001\.partial"):
            archive(bench, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []
    assert [file.seal for file in archive(bench, folder)] == [1, 2]
    sweep(bench)
    audits(bench, folder)


def test_one_at_a_time_archives_into_a_folder(bench: Any, folder: Path) -> None:
    days(bench, begin(bench), 3)
    with bench.history() as history:
        one = archiving.archive_before(
            history, KEY, folder, bench.clock.us - 26 * HOUR, bench.clock.us, lambda op: keep(bench, op)
        )
        next(one)
        with pytest.raises(archiving.FolderBusy):
            archive(bench, folder)
        one.close()
    assert [file.seal for file in archive(bench, folder)] == [2]


# -- tampering


@pytest.fixture(scope="module")
def archived_store(tmp_path_factory: pytest.TempPathFactory, bench_class: Any) -> Any:
    """A store of which the first three days were archived, one by one."""
    root = tmp_path_factory.mktemp("archived")
    bench = bench_class(root / "data")
    key = begin(bench)
    bench.admit(key, 9)
    days(bench, key, 3)
    for _ in range(3):
        days(bench, key, 1)
        archive(bench, root / "archive")
        sweep(bench)
    work(bench, key)
    audits(bench, root / "archive")
    bench.core.close()
    return bench


@pytest.fixture
def copied(archived_store: Any, folder: Path, tmp_path: Path, bench_class: Any) -> Any:
    """A copy of it, which may be spoilt."""
    bench = bench_class(tmp_path / "data")
    bench.core.close()
    source = archived_store.layout.data_dir
    for path in (bench.layout.store, bench.layout.data_dir / "chain.head"):
        path.write_bytes((source / path.name).read_bytes())
    folder.mkdir()
    for file in (source.parent / "archive").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return bench


def test_every_column_of_an_archived_file_is_named(copied: Any, folder: Path) -> None:
    path = folder / "headgate-000002.sqlite"
    original = path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = [(t, row[1]) for t in tables for row in db.execute(f"PRAGMA table_info({t})")]
        filled = {table for table in tables if db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]}
    assert filled >= {*rows.LEAVING, "prices", "limits", "ends", "windows", "about"}
    for table, column in columns:
        if table not in filled:
            continue
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            where = "name = 'ends'" if table == "about" else "1"
            key = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[5]] or ["rowid"]
            wanted = ", ".join((column, *key))
            found = db.execute(f"SELECT {wanted} FROM {table} WHERE {where} LIMIT 1").fetchone()
            place = " AND ".join(f"{name} = ?" for name in key)
            db.execute(f"UPDATE {table} SET {column} = ? WHERE {place}", (changed(found[0]), *found[1:]))
        report = copied.audit(full=True, archived=folder)
        assert not report.ok, (table, column)
        assert "headgate-000002.sqlite" in report.first_difference, (table, column, report.first_difference)
        if table in rows.CHAINED and column not in ("chain", "number"):
            words = (f"{table} row", "link", "covers", "seal 1")
            assert any(word in report.first_difference for word in words), report.first_difference
        assert copied.audit(full=True).ok
        path.write_bytes(original)
    assert copied.audit(full=True, archived=folder).ok


def test_every_byte_of_an_archived_file_counts(copied: Any, folder: Path) -> None:
    path = folder / "headgate-000001.sqlite"
    original = path.read_bytes()
    for place in range(0, len(original), max(1, len(original) // 150)):
        path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        report = copied.audit(full=True, archived=folder)
        assert not report.ok, place
        assert "headgate-000001.sqlite" in report.first_difference
    path.unlink()
    assert "headgate-000001.sqlite is not in" in copied.audit(full=True, archived=folder).first_difference


@pytest.mark.parametrize("column", [*rows.CHAINED["archives"], "digest"])
def test_every_byte_of_a_note_counts(copied: Any, folder: Path, column: str) -> None:
    for which, archived in (("min", folder), ("max", None), ("max", folder)):
        original = copied.layout.store.read_bytes()
        with unguarded(copied.layout.store) as db:
            (row,) = db.execute(f"SELECT {which}(rowid) FROM archives").fetchone()
            (value,) = db.execute(f"SELECT {column} FROM archives WHERE rowid = ?", (row,)).fetchone()
            db.execute(f"UPDATE archives SET {column} = ? WHERE rowid = ?", (changed(value), row))
        report = copied.audit(full=True, archived=archived)
        assert not report.ok
        assert any(word in report.first_difference for word in ("archive", "link", "seal ")), column
        copied.layout.store.write_bytes(original)


SPOILT = [
    ("DELETE FROM archives WHERE seal = 1", "archive", True),
    ("DELETE FROM archives WHERE seal = 5", "seal 4 is missing", False),
    ("INSERT INTO archives SELECT batch, 6, covers, (SELECT max(number) - 20 FROM links), until_us, file, hash, "
     "size, row_count, at_us, digest FROM archives WHERE seal = 5",
     "archive up to seal 6 is noted|seal 5, not at 6", False),
    ("DELETE FROM links WHERE number = (SELECT max(until) FROM archives) + 1", "is missing", False),
    ("DELETE FROM seals WHERE seal = 5", "seal 5 is missing or was changed", False),
    ("UPDATE limits SET amount = amount + 1 WHERE id = (SELECT min(id) FROM limits)", "limits row 1 was", False),
    ("UPDATE prices SET rates = '{}' WHERE rowid = (SELECT min(rowid) FROM prices)", "prices row 1 was", False),
    ("DELETE FROM limits WHERE id = 1", "limits row 1 is not there", False),
    ("UPDATE windows SET spent = spent - 1 WHERE kind = 'month'", "says spent", False),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "difference", "whole_only"), SPOILT, ids=[sql[:60] for sql, *_ in SPOILT])
def test_what_is_spoilt_is_named(copied: Any, folder: Path, sql: str, difference: str, whole_only: bool) -> None:
    with unguarded(copied.layout.store) as db:
        assert db.execute(sql).rowcount > 0
    for archived in (folder,) if whole_only else (None, folder):
        report = copied.audit(full=True, archived=archived)
        assert not report.ok
        with pytest.raises(AssertionError, match=difference):
            raise AssertionError(report.first_difference)


def test_tags_stay_in_the_store_where_they_can_be_erased(new_bench: NewBench, folder: Path) -> None:
    """Nobody can erase from a file of the archive, so none has them; they are counted as if all were there."""
    bench = new_bench("tags")
    key, tagged = begin(bench), []
    for n in range(5):
        tagged.append(bench.admit(key, 100, tags={"user": f"alice-{n}"}).request_id)
        bench.settle(tagged[-1], 5)
        days(bench, key, 1)
        erase(bench, tagged[0])
    archive(bench, folder)
    audits(bench, folder)
    sweep(bench)
    assert not [path for path in folder.iterdir() if b"alice" in path.read_bytes()]
    assert audits(bench, folder)[-1].checked["personal"] == 4
    assert erase(bench, tagged[1]) == 1
    assert erase(bench, tagged[1]) == 0
    bench.clock.us += DAY
    work(bench, key)
    bench.seal()
    audits(bench, folder)
    bench.core.prune(100)
    assert b"alice-1" not in bench.layout.store.read_bytes()
    assert b"alice-2" in bench.layout.store.read_bytes()
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        db.execute("DELETE FROM personal WHERE request_id = ?", (tagged[2],))
        db.commit()
        for options in ({"full": False}, {"full": True}, {"full": True, "archived": folder}):
            assert "1 went without an entry" in bench.audit(**options).first_difference
    bench.core.close()


def erase(bench: Any, request_id: str) -> int:
    """Erase the tags of a request."""
    with bench.history() as history:
        places = tuple(row[:2] for row in history.set_aside((-1, "")) if row[1] == request_id)
    return int(bench.do(ErasePersonal(requests=places)).rows)

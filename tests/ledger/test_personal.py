"""Tags stand beside the history: what is erased is gone from the disk, and what goes silently is missed."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from headgate_gateway.domain.erasing import MOST_ERASED, Erased, ErasePersonal
from headgate_gateway.ledger import seal, sealing, wire
from headgate_gateway.ledger.book import Detail, Hold
from headgate_gateway.ledger.chain import chain_key, row_digest
from headgate_gateway.ledger.packing import pack
from headgate_gateway.ledger.store.schema import PRESENT

DAY = 86_400 * 1_000_000


def places(bench: Any) -> list[tuple[int, str]]:
    """Where there are personal fields."""
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        return db.execute(
            f"SELECT at_us, request_id FROM personal WHERE {PRESENT} ORDER BY at_us, request_id"
        ).fetchall()


def detail_of(bench: Any, request_id: str) -> Detail:
    """What the history says of a request."""
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        (packed,) = db.execute(
            "SELECT detail FROM usage_records WHERE request_id = ?1 "
            "UNION ALL SELECT detail FROM voids WHERE request_id = ?1",
            (request_id,),
        ).fetchone()
    return msgspec.msgpack.decode(packed, type=Detail)


def tagged(bench: Any, count: int = 3, *, void: bool = False) -> list[str]:
    """Requests that have ended, of a user each."""
    if "key_id" not in vars(bench):
        bench.price()
        bench.key_id = bench.key("1/month")
    found = []
    for n in range(count):
        granted = bench.admit(bench.key_id, tags={"user": f"alice-{n}", "team": "web"})
        bench.run(wire.Void(1, granted.request_id)) if void else bench.settle(granted.request_id, n)
        found.append(granted.request_id)
        bench.clock.us += 1000
    return found


def erase(bench: Any, *requests: str, **chosen: Any) -> Any:
    """Erase what there is of some requests."""
    wanted = tuple(place for place in places(bench) if place[1] in requests)
    return bench.do(ErasePersonal(requests=wanted, **chosen))


def files(bench: Any) -> bytes:
    """Everything that the store has on disk."""
    return b"".join(path.read_bytes() for path in bench.layout.store.parent.glob("headgate.sqlite*"))


def test_history_has_a_digest_and_the_table_the_tags(bench: Any) -> None:
    (ended,), (voided,) = tagged(bench, 1), tagged(bench, 1, void=True)
    plain = bench.admit(bench.key_id)
    bench.settle(plain.request_id, 1)
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        found = db.execute("SELECT * FROM personal ORDER BY at_us").fetchall()
    assert [row[1] for row in found] == [ended, voided]
    for row in found:
        detail = detail_of(bench, row[1])
        assert (detail.tags, detail.personal) == ({}, row_digest(row))
    assert (detail_of(bench, plain.request_id).tags, detail_of(bench, plain.request_id).personal) == ({}, None)
    assert len({row[3] for row in found}) == 2
    assert all(len(row[3]) == 16 for row in found)


def test_no_table_but_the_one_has_tags(bench: Any) -> None:
    """Neither holds nor the ring of recent changes carry them, whatever state the request is in."""
    tagged(bench)
    open_ = bench.admit(bench.key_id, tags={"user": "alice-open"})
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        has = {
            name for name in tables if b"alice" in repr(db.execute(f"SELECT * FROM {name}").fetchall()).encode()
        }
    assert has == {"personal"}
    assert bench.core.state.holds[open_.request_id].personal is not None


def test_what_is_erased_is_counted_and_nobody_is_named(bench: Any) -> None:
    first, second, _ = tagged(bench)
    assert erase(bench, first, second, tags=("user",), before=5) == Erased(rows=2)
    assert [place[1] for place in places(bench)] == [_]
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        entries = db.execute(
            "SELECT actor, target, detail FROM audit_log WHERE action = 'personal.erase'"
        ).fetchall()
    assert [(actor, target, msgspec.json.decode(detail)) for actor, target, detail in entries] == [
        ("test", "", {"rows": 2, "tags": ["user"], "before": 5})
    ]
    assert bench.do(ErasePersonal(requests=((1, first), (2, "req_none")))) == Erased(rows=0)
    assert bench.audit().checked["personal"] == 1


def test_what_is_named_twice_counts_once(bench: Any) -> None:
    tagged(bench)
    command = wire.Run(1, ErasePersonal(requests=tuple(places(bench))), "test")
    assert [reply.result.rows for reply in bench.run(command, command)] == [3, 0]
    assert bench.audit().ok


def test_a_command_erases_a_bounded_number(bench: Any) -> None:
    reply = bench.do(ErasePersonal(requests=((1, "r"),) * (MOST_ERASED + 1)))
    assert (reply.code, reply.field) == ("invalid", "requests")


@pytest.mark.parametrize("restarted", [False, True])
def test_whatever_is_sent_again_writes_nothing_again(bench: Any, restarted: bool) -> None:
    (ended,), (voided,) = tagged(bench, 1), tagged(bench, 1, void=True)
    open_ = bench.admit(bench.key_id, tags={"user": "alice-open"}, request_id="req_open")
    assert erase(bench, ended, voided, "req_open").rows == 3
    if restarted:
        bench.restart()
    bench.settle(ended, 1)
    bench.run(wire.Void(1, voided))
    assert bench.admit(bench.key_id, tags={"user": "alice-open"}, request_id="req_open") == open_
    bench.settle("req_open", 1)
    bench.settle("req_open", 1, outcome="lost_node", billed=False)
    assert places(bench) == []
    assert detail_of(bench, "req_open").personal is not None


@pytest.mark.parametrize("seed", range(3))
def test_what_was_erased_is_nowhere_on_disk(new_bench: Callable[[str], Any], seed: int) -> None:
    """Not in the file, its free pages or its log, while the ledger serves; whatever lay between them stays."""
    bench, dice = new_bench("disk"), random.Random(seed)
    bench.price()
    key = bench.key()
    for n in range(1500):
        user = "alice" if dice.random() < 0.5 else "carol"
        long = {f"n{i}": user * 100 for i in range(dice.choice([2, 12]))} if dice.random() < 0.1 else {}
        granted = bench.admit(key, tags={"user": f"{user}-{n:04d}-{user}", **long})
        if dice.random() < 0.8:
            bench.settle(granted.request_id, 1)
        if dice.random() < 0.01:
            bench.clock.us += 1000
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        rows = db.execute("SELECT at_us, request_id, fields FROM personal").fetchall()
    wanted = [(at_us, request_id) for at_us, request_id, fields in rows if b"alice" in fields]
    dice.shuffle(wanted)
    bench.core.prune(100)
    assert b"alice" in files(bench)
    for start in range(0, len(wanted), 100):
        bench.do(ErasePersonal(requests=tuple(wanted[start : start + 100])))
    bench.core.prune(100)
    assert b"alice" not in files(bench)
    assert files(bench).count(b"-carol") >= len(rows) - len(wanted)
    report = bench.audit()
    assert report.ok, report.first_difference
    bench.core.close()


def test_a_reader_keeps_what_was_erased_in_the_log_for_as_long_as_it_reads(bench: Any) -> None:
    (request_id,) = tagged(bench, 1)
    bench.core.prune(100)
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM personal").fetchall()
        erase(bench, request_id)
        bench.core.prune(100)
        assert b"alice" in files(bench)
        reader.execute("COMMIT")
    bench.core.prune(100)
    assert b"alice" not in files(bench)


TAMPERED = {
    "changed": (
        "UPDATE personal SET fields = (SELECT fields FROM personal WHERE request_id = '{1}') "
        "WHERE request_id = '{0}'",
        "of {0} are",
    ),
    "emptied": (
        "UPDATE personal SET salt = zeroblob(16), fields = zeroblob(length(fields)) WHERE request_id = '{0}'",
        "3 requests have .* 4: 1 went without an entry",
    ),
    "back again": (
        "UPDATE personal SET (salt, fields) = (SELECT salt, fields FROM personal WHERE request_id = '{1}') "
        "WHERE request_id = '{6}'",
        "of {6} are not those",
    ),
    "swapped": (
        "UPDATE personal SET (salt, fields) = (SELECT salt, fields FROM personal WHERE request_id = '{1}') "
        "WHERE request_id = '{0}'",
        "of {0} are not those that it came with",
    ),
    "another project": ("UPDATE personal SET project = 'prj_x' WHERE request_id = '{1}'", "of {1} are"),
    "another time": ("UPDATE personal SET at_us = at_us + 1 WHERE request_id = '{2}'", "of {2} are"),
    "of an open request": ("UPDATE personal SET salt = x'00' WHERE request_id = '{3}'", "of {3} are"),
    "of nobody": ("INSERT INTO personal VALUES (5, 'req_no', 'p', x'', x'')", "of req_no, which is not in the"),
    "of one without": ("INSERT INTO personal VALUES (5, '{4}', 'p', x'', x'')", "of {4} are not those"),
    "of an open one without": ("INSERT INTO personal VALUES (5, '{5}', 'p', x'', x'')", "of {5} are not those"),
    "gone": ("DELETE FROM personal WHERE request_id = '{0}'", "3 requests have .* 4: 1 went without an entry"),
    "gone while open": ("DELETE FROM personal WHERE request_id = '{3}'", "1 went without an entry"),
    "all gone": ("DELETE FROM personal", "0 requests have .* 4: 4 went"),
    "twice": (
        "INSERT INTO personal SELECT at_us + 1, request_id, project, salt, fields FROM personal "
        "WHERE request_id = '{2}'",
        "of {2} are not those",
    ),
    "exchanged": (
        "UPDATE personal SET request_id = 'req_no' WHERE request_id = '{1}'",
        "personal fields of req_no, which is not in the history",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_found_and_named(new_bench: Callable[[str], Any], name: str) -> None:
    bench = new_bench("tampered")
    requests = tagged(bench)
    requests += [bench.admit(bench.key_id, tags={"user": "alice-open"}).request_id]
    bench.settle(plain := bench.admit(bench.key_id).request_id, 1)
    requests += [plain, bench.admit(bench.key_id).request_id, *(erased := tagged(bench, 2))]
    assert erase(bench, *erased, tags=("user",)).rows == 2
    bench.core.close()
    assert bench.audit().ok
    sql, difference = TAMPERED[name]
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as db:
        (trigger,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'personal_no_update'").fetchone()
        db.execute("DROP TRIGGER personal_no_update")
        assert db.execute(sql.format(*requests)).rowcount > 0
        db.execute(trigger)
    report = bench.audit()
    with pytest.raises(AssertionError, match=difference.format(*requests)):
        raise AssertionError(report.first_difference)


def test_rows_may_go_but_never_change(bench: Any) -> None:
    tagged(bench, 1)
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        with pytest.raises(sqlite3.IntegrityError, match="personal is never changed"):
            db.execute("UPDATE personal SET fields = x'00'")
        db.execute("DELETE FROM personal")  # is not committed


def test_the_trigger_must_be_there(new_bench: Callable[[str], Any]) -> None:
    bench = new_bench("trigger")
    tagged(bench)
    bench.core.close()
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        db.execute("DROP TRIGGER personal_no_update")
    assert "the trigger that forbids UPDATE on personal is missing" in bench.audit().first_difference


def test_seals_carry_the_count(bench: Any) -> None:
    """What was set aside before a seal is erased after it, and what was open at one is erased before it ends."""
    before = tagged(bench)
    bench.clock.us += DAY
    open_ = bench.admit(bench.key_id, tags={"user": "alice-open"}).request_id
    assert erase(bench, before[0], open_).rows == 2
    bench.seal()
    assert erase(bench, before[1]).rows == 1
    bench.settle(open_, 1)
    bench.clock.us += DAY
    tagged(bench, 2)
    for full in (False, True):
        report = bench.audit(full=full)
        assert report.ok, report.first_difference
        assert (report.began == "the beginning") == full
        assert report.checked["personal"] == (3 if full else 2)
    bench.seal()
    assert bench.audit().checked["agreeing seals"] == 2


def test_what_goes_silently_is_missed_whenever_it_was_written(new_bench: Callable[[str], Any]) -> None:
    bench = new_bench("sealed")
    tagged(bench)
    bench.clock.us += DAY
    bench.seal()
    bench.core.close()
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as db:
        db.execute("DELETE FROM personal WHERE at_us = (SELECT min(at_us) FROM personal)")
    for full in (False, True):
        assert "1 went without an entry" in bench.audit(full=full).first_difference


def test_a_seal_that_counts_wrongly_is_named(new_bench: Callable[[str], Any]) -> None:
    bench = new_bench("counting")
    tagged(bench)
    with bench.history() as history:
        found = sealing.make(history, chain_key(b"p" * 32))
    told = seal.joined([seal.SealRow(**msgspec.structs.asdict(part)) for part in found], chain_key(b"p" * 32))
    assert told is not None
    assert told.personal == 3
    told.personal = 2
    for part in seal.parts_of(told, 1, chain_key(b"p" * 32)):
        bench.do(part)
    assert "seal 1 says personal fields 2" in bench.audit(full=True).first_difference
    assert "1 came without an entry" in bench.audit(full=False).first_difference
    bench.core.close()


def test_after_a_seal_that_does_not_count_it_is_counted_from_there(bench: Any) -> None:
    """One of before there was anything to be counted, or of a node that runs the program of before."""
    tagged(bench)
    with bench.history() as history:
        parts = sealing.make(history, chain_key(b"p" * 32))
    told = seal.joined([seal.SealRow(**msgspec.structs.asdict(part)) for part in parts], chain_key(b"p" * 32))
    assert told is not None
    told.personal = None
    for part in seal.parts_of(told, 1, chain_key(b"p" * 32)):
        bench.do(part)
    ended = tagged(bench)
    assert bench.audit(full=False).began.startswith("seal 1 ")
    assert erase(bench, ended[0]).rows == 1
    bench.admit(bench.key_id, tags={"user": "alice-open"})
    bench.seal()
    erase(bench, ended[1])
    for full in (False, True):
        report = bench.audit(full=full)
        assert report.ok, report.first_difference
        assert full or report.began.startswith("seal 2 ")


def test_an_audit_while_tags_are_erased(bench: Any) -> None:
    """Rows that go between its slices, and requests that end between them, are no difference."""
    before = tagged(bench, 4)
    open_ = [bench.admit(bench.key_id, tags={"user": f"alice-{n}"}).request_id for n in range(3)]
    from headgate_gateway.ledger.derivation import Derivation

    with bench.history() as history:
        derivation = Derivation(history, chain_key(b"p" * 32))
        begin = history.begin

        def begin_later() -> None:
            erase(bench, before[0], open_[0])
            bench.settle(open_[0], 1)
            bench.settle(open_[1], 1)
            begin()

        history.begin = begin_later
        derivation.everything(full=True)
        assert derivation.checked["personal"] == 7


def test_who_was_admitted_before_keeps_its_tags_where_they_were(bench: Any) -> None:
    """Records of before are history like any other; a hold of before ends as one of these."""
    tagged(bench, 1)
    hold = bench.core.state.holds[bench.admit(bench.key_id).request_id]
    hold.tags = {"user": "bob"}
    old = msgspec.msgpack.decode(pack(hold), type=list)[:-1]
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Hold)
    assert (read.tags, read.personal) == ({"user": "bob"}, None)
    bench.settle(hold.request_id, 1)
    assert (detail_of(bench, hold.request_id).tags, detail_of(bench, hold.request_id).personal) == (
        {"user": "bob"},
        None,
    )
    assert bench.audit().checked["personal"] == 1


def test_a_program_of_before_reads_what_this_one_packs(bench: Any) -> None:
    """On PostgreSQL both may serve for a while: what was added stands last, and is passed over."""

    class Before(msgspec.Struct, array_like=True):
        attempts: bytes
        tags: dict[str, str]
        bound: tuple[int, ...]
        steps: list[int]
        parts: list[Any]
        worker: int
        retry_of: str | None = None

    (request_id,) = tagged(bench, 1)
    detail = detail_of(bench, request_id)
    assert msgspec.msgpack.decode(pack(detail), type=Before).tags == {}
    assert detail.personal is not None


@pytest.mark.parametrize("point", ["ledger.before_commit", "ledger.in_transaction", "ledger.after_commit"])
def test_killed_while_it_erases(tmp_path: Path, bench_class: Any, point: str) -> None:
    """Each batch erases and counts, or does neither; running it again does the rest."""
    import signal
    import subprocess
    import sys

    bench = bench_class(tmp_path / "killed")
    tagged(bench, 9)
    bench.core.close()
    script = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from headgate_gateway import crashpoints
from tests.ledger.conftest import Bench
from tests.ledger.test_personal import ErasePersonal, places
bench = Bench(Path(sys.argv[1]))
crashpoints.arm(sys.argv[2] + ":2")
found = places(bench)
for start in range(0, 9, 3):
    bench.do(ErasePersonal(requests=tuple(found[start : start + 3])))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "killed"), point],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    bench.core = bench._open()
    left = places(bench)
    assert len(left) == (3 if point == "ledger.after_commit" else 6)
    assert bench.audit().ok, bench.audit().first_difference
    assert bench.do(ErasePersonal(requests=tuple(left))).rows == len(left)
    assert places(bench) == []
    assert bench.audit().ok
    bench.core.prune(100)
    assert b"alice" not in files(bench)
    bench.core.close()

"""Archiving the chains of several nodes: one node does it, the others go on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest
from headgate_gateway.admin.postgres_usage import PostgresUsage
from headgate_gateway.cli.times import exactly
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain import commands as c
from headgate_gateway.domain.erasing import ErasePersonal
from headgate_gateway.ledger import archiving, rows, wire
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.postgres import schema
from headgate_gateway.ledger.postgres.history import PostgresHistory
from headgate_gateway.ledger.replay import Differs

from tests.ledger.postgres.nodes import NewBench, two_nodes

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR
KEY = chain_key(b"p" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archive"


def work(benches: list[Any], key: str) -> None:
    """Requests on every node, on the same windows, and commands."""
    for n, bench in enumerate(benches):
        granted = bench.admit(key, 100, prompt=50, claim=bench.ids.request(), fingerprint=b"f")
        benches[n - 1].settle(granted.request_id, 10 * n, prompt=50)
        bench.run(wire.Void(1, bench.admit(key, 7).request_id))
        bench.do(c.SetBudget(account="p", amount=f"0.5{n}", window="month"))


def days(benches: list[Any], key: str, count: int) -> None:
    """Days of work, each sealed at its end by one of the nodes."""
    for n in range(count):
        work(benches, key)
        for bench in benches:
            bench.clock.us += DAY
        benches[n % len(benches)].seal()


def archive(bench: Any, folder: Path, before: int | None = None) -> list[int]:
    before = bench.clock.us - 26 * HOUR if before is None else before

    def keep(command: Any) -> None:
        result = bench.do(command)
        assert isinstance(result, c.Done), result

    with bench.history() as history:
        found = archiving.archive_before(history, KEY, folder, before, bench.clock.us, keep)
        return [file.seal for file in found]


def sweep(bench: Any, rows_at_once: int = 1000) -> int:
    steps = 0
    while bench.core.sweep(rows_at_once):
        steps += 1
    return steps


def audits(bench: Any, folder: Path) -> tuple[Any, Any, Any]:
    found = bench.audit(full=False), bench.audit(full=True), bench.audit(full=True, archived=folder)
    for report in found:
        assert report.ok, report.first_difference
    return found


def counts(url: str) -> dict[str, int]:
    with psycopg.connect(url) as db:
        found = {}
        for table in (*rows.CHAINED, "links", "windows"):
            (found[table],) = db.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,)
        return found


def test_all_chains_leave_and_can_still_be_derived(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    first, second = benches
    stays = first.admit(key, 5000, stream=True, least=1).request_id
    days(benches, key, 4)
    before = counts(first.url)
    assert archive(second, folder) == [1, 2, 3]
    audits(first, folder)
    assert sweep(first, 2) > 5
    after = counts(first.url)
    left = {table: before[table] - after[table] for table in before}
    assert (left["usage_records"], left["voids"], left["prices"], left["limits"]) == (6, 6, 0, 0)
    assert left["windows"] == 1  # that of the second day; of the first something is held
    _, full, whole = audits(second, folder)
    assert full.began.startswith("the end of the archive, seal 3 of ")
    assert (full.checked["usage_records"], whole.checked["usage_records"]) == (2, 8)
    with first.history() as history:
        assert history.swept()
    for bench in benches:
        bench.restart()
    third = new_postgres_bench("c", seed=9)
    third.clock.us = first.clock.us
    third.settle(stays, 1200)
    days([*benches, third], key, 2)
    assert archive(third, folder) == [4, 5]
    sweep(second)
    assert left["windows"] < counts(first.url)["windows"] < after["windows"]
    audits(third, folder)


def test_nodes_go_on_while_one_archives(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    days(benches, key, 4)
    done = threading.Event()
    reports: list[Any] = []

    def audit() -> None:
        while not done.is_set():
            reports.extend(benches[1].audit(full=full) for full in (True, False))

    auditor = threading.Thread(target=audit)
    auditor.start()
    try:
        archive(benches[0], folder)
        for _ in range(4):
            work(benches, key)
            for bench in benches:
                bench.core.sweep(3)
    finally:
        done.set()
        auditor.join()
    assert {(report.ok, report.first_difference) for report in reports} == {(True, None)}
    sweep(benches[1])
    audits(benches[0], folder)


def test_it_numbers_on_when_all_old_rows_are_gone(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    days(benches, key, 2)
    benches[0].seal()
    for bench in benches:
        bench.clock.us += 3 * DAY
    assert archive(benches[0], folder) == [1, 2, 3]
    with psycopg.connect(benches[0].url) as db:
        last = db.execute("SELECT max(position) FROM usage_records").fetchone()
    sweep(benches[0])
    for bench in benches:
        bench.restart()
    with psycopg.connect(benches[0].url) as db:
        assert db.execute("SELECT max(position) FROM usage_records").fetchone() == last
        schema.check_order(db)
    work(benches, key)
    audits(benches[1], folder)


def test_triggers_let_go_of_what_is_noted_and_of_nothing_else(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    days(benches, key, 4)
    archive(benches[0], folder)
    with psycopg.connect(benches[0].url, autocommit=True) as db:
        for table in (*rows.CHAINED, "links"):
            for sql in (f"DELETE FROM {table}", f"UPDATE {table} SET chain = chain", f"TRUNCATE {table}"):
                with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
                    db.execute(sql.encode())
        db.execute("BEGIN")
        for table in rows.LEAVING:
            batch = "number" if table == "links" else "batch"
            covered = f"{batch} <= (SELECT max(until) FROM archives WHERE covers = {table}.chain)"
            assert db.execute(f"DELETE FROM {table} WHERE {covered}".encode()).rowcount > 0
        db.execute("ROLLBACK")


GUARDS = [
    "DROP TRIGGER links_archived_only ON links",
    "ALTER TABLE links DISABLE TRIGGER links_archived_only",
    "DROP TRIGGER links_archived_only ON links; CREATE TRIGGER links_archived_only BEFORE DELETE ON links "
    "FOR EACH STATEMENT EXECUTE FUNCTION headgate_archived_only()",
    "DROP TRIGGER prices_append_only ON prices; CREATE TRIGGER prices_archived_only BEFORE DELETE ON prices "
    "FOR EACH ROW EXECUTE FUNCTION headgate_archived_only()",
    "CREATE OR REPLACE FUNCTION headgate_archived_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RETURN OLD; END $$",
]


@pytest.mark.parametrize("change", GUARDS)
def test_a_guard_that_does_nothing_is_named(server: Any, tmp_path: Path, change: str) -> None:
    with psycopg.connect(server.database(), autocommit=True) as db:
        history = PostgresHistory(db, KEY, tmp_path)
        assert history.check_schema() > 0
        db.execute(change.encode())
        with pytest.raises(Differs, match="append-only"):
            history.check_schema()


def test_what_a_lost_node_may_still_prove_is_kept(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    days(benches, key, 4)
    with psycopg.connect(benches[0].url, autocommit=True) as db:
        at = "to_timestamp(%s / 1000000.0)"
        lost = f"UPDATE nodes SET lost = %s, heartbeat = {at} WHERE number = 2"
        db.execute(lost.encode(), (True, benches[0].clock.us - 3 * DAY))
        (young,) = db.execute("SELECT heartbeat > clock_timestamp() - interval '30 days' FROM nodes").fetchall()[
            0
        ]
        if young:
            with pytest.raises(archiving.NotYet, match=r"the lost node node_[0-9a-f]+ may return and prove"):
                archive(benches[0], folder)
        db.execute(lost.encode(), (False, benches[0].clock.us))
    assert archive(benches[0], folder) == [1, 2, 3]


async def test_usage_says_from_when_on_it_is_whole(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    await asyncio.to_thread(days, benches, key, 4)
    reader = PostgresUsage(benches[0].url)
    assert await reader.archived_until() is None
    everything = await reader.totals("model", bucket="1d")
    archive(benches[0], folder)
    for _ in range(3):
        assert await reader.archived_until() == benches[0].clock.us - 2 * DAY
        assert await reader.totals("model", bucket="1d") == everything[-1:]
        assert len((await reader.records()).records) == 2
        benches[0].core.sweep(1)
    sweep(benches[0])
    assert await reader.totals("model", bucket="1d") == everything[-1:]


def test_an_archived_file_says_what_the_database_said(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    days(benches, key, 3)
    columns = ", ".join(("chain", *rows.RECORD, "digest"))
    with psycopg.connect(benches[0].url) as db:
        said = db.execute(f"SELECT {columns} FROM usage_records ORDER BY chain, seq".encode()).fetchall()
    archive(benches[0], folder)
    found = []
    for path in sorted(folder.iterdir()):
        with closing(sqlite3.connect(path)) as file:
            found += file.execute(f"SELECT {columns} FROM usage_records").fetchall()
    assert sorted(found) == [row for row in said if row in found]
    assert len(found) == 4
    content = path.read_bytes()
    path.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    assert path.name in benches[1].audit(full=True, archived=folder).first_difference


def test_what_a_consumer_has_not_had_is_kept(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    days(benches, key, 4)
    with psycopg.connect(benches[0].url) as db:
        found = db.execute("SELECT position FROM usage_records ORDER BY position").fetchall()
    benches[0].do(c.MoveCursor(consumer="bills", position=found[-1][0]))
    benches[0].do(c.MoveCursor(consumer="exports", position=found[2][0]))
    with pytest.raises(archiving.NotYet, match="the consumer exports has not had it yet"):
        archive(benches[0], folder)
    assert archive(benches[0], folder, benches[0].clock.us - 3 * DAY - HOUR) == [1]
    benches[0].do(c.MoveCursor(consumer="exports", position=found[-1][0]))
    assert archive(benches[0], folder) == [2, 3]


def test_nothing_is_archived_before_programs_of_before_are_gone(
    server: Any, folder: Path, tmp_path: Path
) -> None:
    """A database that was migrated, not contracted: triggers let nothing go, and audits want it so."""
    url = server.database(template="template1")
    revisions = tmp_path / "revisions"
    revisions.mkdir()
    for path in (resources.files("headgate_gateway.ledger") / "postgres" / "migrations").iterdir():
        if path.name[:4].isdigit() and path.name < "0006":
            (revisions / path.name).write_text(path.read_text())
    schema.migrate(url, revisions=revisions)
    assert schema.migrate(url) == schema.Migrated("0005", "0005", ("0006",))
    with psycopg.connect(url, autocommit=True) as db:
        schema.check(db)
        history = PostgresHistory(db, KEY, tmp_path)
        assert history.check_schema() > 0
        with pytest.raises(
            archiving.NotYet, match=r"nothing can be archived yet: .* `headgate migrate --contract`"
        ):
            list(archiving.archive_before(history, KEY, folder, 0 + HOUR, 100 * DAY, lambda op: None))
        with pytest.raises(psycopg.errors.RestrictViolation):
            db.execute("DELETE FROM links")
        assert schema.migrate(url, contract=True) == schema.Migrated("0005", "0006", ())
        assert history.check_schema() > 0
        assert archiving.needed_since(history, 100 * DAY)[0] == 100 * DAY - 26 * HOUR


CONFIG = """
[server]
data_dir = "a"
[store]
url = "{url}"
[[models]]
id = "m"
task = "chat"
backend = "echo"
"""


@pytest.mark.parametrize(
    "order", ["archive.whole:2", "ledger.after_commit:2", "ledger.in_sweep:3", "ledger.swept:2"]
)
def test_the_command_is_ended_by_running_it_again(
    new_postgres_bench: NewBench, url: str, tmp_path: Path, order: str
) -> None:
    """Its ledger, for the moment, is a node; what the command writes all goes into the first of its lanes."""
    benches = [new_postgres_bench(name, seed=n) for n, name in enumerate("ab")]
    for bench in benches:
        bench.clock.us = SystemClock().now_us() - 10 * DAY
    benches[0].price(output="0.001")
    key = benches[0].key("0.5/day")
    days(benches, key, 4)
    benches[0].core.close()
    (tmp_path / "headgate.toml").write_text(CONFIG.format(url=url))

    def run(crash: str) -> subprocess.CompletedProcess[str]:
        moment = exactly(SystemClock().now_us() - 2 * DAY)
        command = [sys.executable, "-m", "headgate_gateway.cli", "archive", "--before", moment, "--json"]
        environment = {**os.environ, "HEADGATE_CRASH_AT": crash}
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment, check=False
        )

    killed = run(order)
    assert killed.returncode == -signal.SIGKILL, (killed.stdout, killed.stderr)
    for full in (False, True):
        report = benches[1].audit(full=full)
        assert report.ok, report.first_difference
    again = run("")
    benches[0].core = benches[0]._open()
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["deleted"]
    _, _, whole = audits(benches[1], tmp_path / "a" / "archive")
    assert (whole.checked["usage_records"], whole.checked["archived files"]) == (8, 4)
    assert counts(url)["usage_records"] == 2  # the last of each chain that has any


def test_tags_stay_in_the_database_where_they_can_be_erased(new_postgres_bench: NewBench, folder: Path) -> None:
    benches, key = two_nodes(new_postgres_bench)
    tagged = []
    for n in range(4):
        granted = benches[n % 2].admit(key, 100, tags={"user": f"alice-{n}"})
        benches[1 - n % 2].settle(granted.request_id, 5)
        tagged.append(granted.request_id)
        days(benches, key, 1)
    archive(benches[0], folder)
    sweep(benches[0])
    assert not [path for path in folder.iterdir() if b"alice" in path.read_bytes()]
    assert audits(benches[1], folder)[-1].checked["personal"] == 4
    with psycopg.connect(benches[0].url) as db:
        places = db.execute("SELECT at_us, request_id FROM personal ORDER BY at_us").fetchall()
    assert [place[1] for place in places] == tagged
    assert benches[1].do(ErasePersonal(requests=tuple(places[:2]))).rows == 2
    benches[0].seal()
    for bench in benches:
        audits(bench, folder)

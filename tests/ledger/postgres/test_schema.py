"""Migrations: forward only, expand before contract, and a program that serves no database it does not fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest
from headgate_gateway.admin.postgres_usage import PostgresUsage
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.postgres import schema
from headgate_gateway.ledger.postgres.pepper import WrongPepper
from headgate_gateway.ledger.postgres.session import connect

REVISION = """
from alembic import op
revision, down_revision, branch_labels, depends_on = {revision!r}, {before!r}, None, None
phase = {phase!r}
def upgrade():
    op.execute({statement!r})
"""


@pytest.fixture
def empty(server: Any) -> str:
    """The URL of a database without a schema."""
    url: str = server.database(template="template1")
    return url


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The revisions of a release to come: it adds a column, drops another, adds one more."""
    folder = tmp_path / "revisions"
    folder.mkdir()
    for path in (resources.files("headgate_gateway.ledger") / "postgres" / "migrations").iterdir():
        if path.name[:4].isdigit():
            (folder / path.name).write_text(path.read_text())
    for revision, before, phase, statement in (
        ("9001", schema.HEAD, "expand", "ALTER TABLE nodes ADD region text"),
        ("9002", "9001", "contract", "ALTER TABLE nodes DROP lost"),
        ("9003", "9002", "expand", "ALTER TABLE nodes ADD zone text"),
    ):
        text = REVISION.format(revision=revision, before=before, phase=phase, statement=statement)
        (folder / f"{revision}.py").write_text(text)
    return folder


def test_a_session_waits_for_nothing_without_an_end_and_commits_to_disk(empty: str) -> None:
    ours = {
        "synchronous_commit": "on",
        "lock_timeout": "2s",
        "statement_timeout": "5s",
        "idle_in_transaction_session_timeout": "2s",
        "default_transaction_isolation": "read committed",
    }
    with psycopg.connect(empty, autocommit=True) as db:
        for name in ours:  # a database may have defaults of its own
            other = {"synchronous_commit": "off", "default_transaction_isolation": "serializable"}.get(name, "0")
            db.execute(f"ALTER DATABASE {db.info.dbname} SET {name} = '{other}'")
    with connect(empty) as db:
        assert {name: db.execute(f"SHOW {name}").fetchone()[0] for name in ours} == ours  # type: ignore[index]


def test_a_migration_makes_everything_once(empty: str) -> None:
    assert schema.migrate(empty) == schema.Migrated(None, schema.HEAD, ())
    assert schema.migrate(empty) == schema.Migrated(schema.HEAD, schema.HEAD, ())
    with psycopg.connect(empty) as db:
        schema.check(db)
        triggers = db.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal").fetchall()
        checks = db.execute("SELECT conname FROM pg_constraint WHERE contype = 'c'").fetchall()
    assert {name for (name,) in triggers} == {
        *(f"{table}_append_only" for table in (*schema.APPEND_ONLY, "personal")),
        *(f"{table}_archived_only" for table in rows.LEAVING),
    }
    assert {"windows_not_negative", "windows_within_cap", "records_within_hold"} <= {name for (name,) in checks}


def test_the_last_revision_is_the_one_that_the_program_knows() -> None:
    folder = resources.files("headgate_gateway.ledger") / "postgres" / "migrations"
    found = sorted(path.name[:4] for path in folder.iterdir() if path.name[:4].isdigit())
    assert found[-1] == schema.HEAD
    assert schema.OLDEST in found


def test_an_empty_database_is_refused_with_the_command(empty: str, tmp_path: Path) -> None:
    with psycopg.connect(empty) as db, pytest.raises(schema.WrongSchema, match="`headgate migrate`"):
        schema.check(db)


def test_what_programs_of_before_need_goes_only_when_asked(empty: str, later: Path) -> None:
    schema.migrate(empty)
    assert schema.migrate(empty, revisions=later) == schema.Migrated(schema.HEAD, "9001", ("9002", "9003"))
    with psycopg.connect(empty) as db:
        schema.check(db)  # this program knows nothing of 9001 and goes on
        assert db.execute("SELECT lost, region FROM nodes").fetchall() == []
    assert schema.migrate(empty) == schema.Migrated("9001", "9001", ())
    assert schema.migrate(empty, revisions=later, contract=True) == schema.Migrated("9001", "9003", ())
    with psycopg.connect(empty) as db, pytest.raises(schema.WrongSchema, match="update headgate"):
        schema.check(db)
    with pytest.raises(schema.WrongSchema, match="9002"):
        schema.migrate(empty)


def test_a_revision_that_fails_leaves_nothing_of_it(empty: str, later: Path) -> None:
    (later / "9002.py").write_text(
        REVISION.format(
            revision="9002", before="9001", phase="expand", statement="ALTER TABLE nowhere ADD x text"
        )
    )
    with pytest.raises(psycopg.errors.UndefinedTable):
        schema.migrate(empty, revisions=later)
    with psycopg.connect(empty) as db:
        assert schema.revision(db) is None


def test_a_node_with_another_pepper_is_refused(new_postgres_bench: Callable[..., Any], url: str) -> None:
    bench = new_postgres_bench("a")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE deployment SET pepper = reverse(pepper)")
        with pytest.raises(WrongPepper, match="every node the same"):
            new_postgres_bench("b", seed=2)
        assert "every node the same" in str(bench.audit().first_difference)
        db.execute("UPDATE deployment SET pepper = reverse(pepper)")


def test_a_restored_dump_goes_on_after_its_last_record(new_postgres_bench: Callable[..., Any], url: str) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key()
    bench.settle(bench.admit(key, request_id="req_old").request_id, 1)
    with psycopg.connect(url) as db:  # what a server with fewer transactions behind it would find
        db.execute("ALTER TABLE usage_records DISABLE TRIGGER usage_records_append_only")
        db.execute("UPDATE usage_records SET position = position + 1000000")
        db.execute("ALTER TABLE usage_records ENABLE TRIGGER usage_records_append_only")
    with pytest.raises(schema.WrongSchema, match="headgate migrate"):
        new_postgres_bench("another", seed=2)
    schema.migrate(url)
    bench.restart()
    bench.settle(bench.admit(key, request_id="req_new").request_id, 1)
    page = asyncio.run(PostgresUsage(url).records())
    assert [record.request_id for record in page.records] == ["req_old", "req_new"]
    schema.migrate(url)
    assert asyncio.run(PostgresUsage(url).records()) == page

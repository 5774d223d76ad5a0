"""Tags beside the history on PostgreSQL: the same rules, over all nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pytest
from headgate_gateway.domain.erasing import Erased, ErasePersonal
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import Detail
from headgate_gateway.ledger.chain import row_digest
from headgate_gateway.ledger.postgres import schema

DAY = 86_400 * 1_000_000


def ask(bench: Any, sql: str) -> list[Any]:
    """What a query finds."""
    with psycopg.connect(bench.url, autocommit=True) as db:
        return db.execute(sql.encode()).fetchall()


def tagged(bench: Any, key: str, count: int = 3, *, void: bool = False) -> list[str]:
    """Requests that have ended, of a user each."""
    found = []
    for n in range(count):
        granted = bench.admit(key, tags={"user": f"alice-{n}", "odd": 'a "b", {c} \\ d'})
        bench.run(wire.Void(1, granted.request_id)) if void else bench.settle(granted.request_id, n)
        found.append(granted.request_id)
        bench.clock.us += 1000
    return found


def places(bench: Any, *requests: str) -> tuple[tuple[int, str], ...]:
    """Where there are personal fields, of all or of some requests."""
    found = ask(bench, "SELECT at_us, request_id FROM personal ORDER BY at_us, request_id")
    return tuple(place for place in found if not requests or place[1] in requests)


def test_history_has_a_digest_and_the_table_the_tags(new_postgres_bench: Callable[..., Any]) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key()
    requests = [*tagged(bench, key, 1), *tagged(bench, key, 1, void=True)]
    open_ = bench.admit(key, tags={"user": "alice-open"})
    rows = ask(bench, "SELECT at_us, request_id, project, salt, fields FROM personal ORDER BY at_us, request_id")
    assert [row[1] for row in rows] == [*requests, open_.request_id]
    details = ask(bench, "SELECT detail FROM usage_records UNION ALL SELECT detail FROM voids")
    for row, (packed,) in zip(rows, details, strict=False):
        assert msgspec.msgpack.decode(packed, type=Detail).personal == row_digest(row)
    for table in ("usage_records", "voids", "holds", "audit_log"):
        assert ask(
            bench, f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE '%' || encode('alice', 'hex') || '%'"
        ) == [(0,)]


def test_erased_by_one_node_counted_by_all(new_postgres_bench: Callable[..., Any]) -> None:
    first, second = new_postgres_bench("first"), new_postgres_bench("second", seed=8)
    first.price()
    key = first.key()
    ended = tagged(first, key)
    open_ = second.admit(key, tags={"user": "alice-open"}).request_id
    before = places(first, ended[0], open_)
    assert second.do(ErasePersonal(requests=before, tags=("user",))) == Erased(rows=2)
    assert first.do(ErasePersonal(requests=before, tags=("user",))) == Erased(rows=0)
    second.settle(open_, 1)
    assert [place[1] for place in places(first)] == ended[1:]
    ((detail,),) = ask(first, "SELECT detail FROM audit_log WHERE action = 'personal.erase'")
    assert msgspec.json.decode(detail) == {"rows": 2, "tags": ["user"]}
    for bench in (first, second):
        assert bench.audit().checked["personal"] == 2


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_erased_once_when_nobody_knows_whether_it_was_committed(
    proxied: Any, new_postgres_bench: Callable[..., Any], moment: str
) -> None:
    proxy, url = proxied
    bench = new_postgres_bench(url=url)
    bench.price()
    tagged(bench, bench.key())
    proxy.cut = moment
    assert bench.do(ErasePersonal(requests=places(bench))) == Erased(rows=3)
    assert (proxy.cuts, places(bench)) == (1, ())


def test_seals_carry_the_count(new_postgres_bench: Callable[..., Any]) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key()
    ended = tagged(bench, key)
    bench.clock.us += DAY
    open_ = bench.admit(key, tags={"user": "alice-open"}).request_id
    assert bench.do(ErasePersonal(requests=places(bench, ended[0], open_))).rows == 2
    bench.seal()
    assert bench.do(ErasePersonal(requests=places(bench, ended[1]))).rows == 1
    bench.settle(open_, 1)
    tagged(bench, key, 2)
    for full in (False, True):
        report = bench.audit(full=full)
        assert report.ok, report.first_difference
        assert (report.began == "the beginning") == full
        assert report.checked["personal"] == (3 if full else 2)


TAMPERED = {
    "changed": ("UPDATE personal SET fields = '\\x00' WHERE request_id = '{0}'", "of {0} are not those"),
    "swapped": (
        "UPDATE personal SET (salt, fields) = (SELECT salt, fields FROM personal WHERE request_id = '{1}') "
        "WHERE request_id = '{0}'",
        "of {0} are not those",
    ),
    "of an open request": ("UPDATE personal SET salt = '\\x00' WHERE request_id = '{2}'", "of {2} are not those"),
    "of nobody": ("INSERT INTO personal VALUES (5, 'req_no', 'p', '', '')", "of req_no, which is not in the"),
    "gone": ("DELETE FROM personal WHERE request_id = '{0}'", "2 requests have .* 3: 1 went without an entry"),
    "no trigger": ("DROP TRIGGER personal_append_only ON personal", "forbids UPDATE on personal is missing"),
    "no such trigger": (
        "DROP TRIGGER personal_append_only ON personal; CREATE TRIGGER personal_append_only "
        "BEFORE DELETE OR TRUNCATE ON personal EXECUTE FUNCTION headgate_append_only()",
        "forbids UPDATE on personal is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_found_and_named(new_postgres_bench: Callable[..., Any], server: Any, name: str) -> None:
    bench = new_postgres_bench(url=server.database())
    bench.price()
    key = bench.key()
    requests = [*tagged(bench, key, 2), bench.admit(key, tags={"user": "alice-open"}).request_id]
    sql, difference = TAMPERED[name]
    with psycopg.connect(bench.url, autocommit=True) as db:
        db.execute("CREATE TABLE before AS SELECT * FROM personal")
        db.execute("SET session_replication_role = replica")
        db.execute(sql.format(*requests).encode())
    with pytest.raises(AssertionError, match=difference.format(*requests)):
        raise AssertionError(bench.audit().first_difference)
    with psycopg.connect(bench.url, autocommit=True) as db:  # the fixture audits at the end
        db.execute("DROP TRIGGER IF EXISTS personal_append_only ON personal")
        db.execute("TRUNCATE personal")
        db.execute("INSERT INTO personal SELECT * FROM before")
        db.execute(
            "CREATE TRIGGER personal_append_only BEFORE UPDATE OR TRUNCATE ON personal "
            "EXECUTE FUNCTION headgate_append_only()"
        )


def test_rows_may_go_but_never_change(new_postgres_bench: Callable[..., Any]) -> None:
    bench = new_postgres_bench()
    bench.price()
    tagged(bench, bench.key())
    for sql in ("UPDATE personal SET salt = ''", "TRUNCATE personal"):
        with pytest.raises(psycopg.errors.RestrictViolation, match="personal is append-only"):
            ask(bench, sql)


def test_a_database_of_before_is_refused_until_it_was_migrated(server: Any, tmp_path: Any) -> None:
    from importlib import resources

    folder = tmp_path / "before"
    folder.mkdir()
    for path in (resources.files("headgate_gateway.ledger") / "postgres" / "migrations").iterdir():
        if path.name[:4] in ("0001", "0002"):
            (folder / path.name).write_text(path.read_text())
    url = server.database(template="template1")
    assert schema.migrate(url, revisions=folder).after == "0002"
    with psycopg.connect(url) as db, pytest.raises(schema.WrongSchema, match="run `headgate migrate`"):
        schema.check(db)
    assert schema.migrate(url).after >= schema.OLDEST
    with psycopg.connect(url) as db:
        schema.check(db)
        assert db.execute("SELECT contracted FROM deployment").fetchone() == ("0001",)

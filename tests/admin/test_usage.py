"""Usage queries: pages, filters, sums by group and bucket of time; the same from both stores."""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from headgate_gateway.admin import postgres_usage
from headgate_gateway.admin.postgres_usage import PostgresUsage
from headgate_gateway.admin.sqlite_usage import SqliteUsage
from headgate_gateway.admin.usage import QueryTooSlow, UsageReader, UsageUnavailable
from headgate_gateway.domain import commands as c
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.domain.money import MAX
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.core import Core, Speaker
from headgate_gateway.ledger.postgres import read_only
from headgate_gateway.ledger.postgres.core import PostgresCore
from headgate_gateway.ledger.store.sqlite import SqliteStore
from headgate_plugin_api import Attempt

from benchmarks.postgres_server import Server

MINUTE = 60_000_000
START = 1_795_000_000 * 1_000_000 // MINUTE * MINUTE
ATTEMPT = Attempt(backend="echo", target="a", outcome="ok", started_us=1, ended_us=2)


class At:
    us = START

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return 0.0


def fill(core: Any, clock: At) -> None:
    """Thirty records: one a minute, models m0 and m1 in turn, n tokens in the n-th, tagged."""

    def run(op: Any) -> Any:
        return core.run([(Speaker(), op)])[0]

    for model in ("m0", "m1"):
        run(wire.Run(1, c.SetPrice(model=model, rates={"output": "1"})))
    run(wire.Run(1, c.Create(id="key_1", digest=b"d" * 32, prefix="hg_", project="p")))
    for n in range(30):
        tags = {"n": str(n)} | ({"odd": "yes"} if n % 2 else {})
        run(wire.Admit(1, f"req_{n}", "key_1", f"m{n % 2}", "chat", (0,) * 9, n, n, False, 2**62, tags=tags))
        run(
            wire.Settle(
                1, f"req_{n}", (0, 0, 0, n, 0, 0, 0, 1, 0), "upstream", "ok", "echo",
                attempts=msgspec.msgpack.encode((ATTEMPT,)),
            )
        )  # fmt: skip
        clock.us += MINUTE
    core.close()


KEY = chain_key(b"x")


@pytest.fixture(scope="module")
def filled(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database in which `fill` wrote, not to be changed."""
    url, clock = postgres_server.database(), At()
    ids = IdSource(clock, random.Random(1))
    fill(PostgresCore(url, tmp_path_factory.mktemp("node"), KEY, clock, ids, local_time=True), clock)
    return url


@pytest.fixture
def copied(postgres_server: Server, filled: str) -> str:
    """A copy of it, to be changed."""
    return postgres_server.database(template=filled.partition("@/")[2].partition("?")[0])


@pytest.fixture(scope="module")
def filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A data folder in which `fill` wrote."""
    layout, clock = Layout.of(tmp_path_factory.mktemp("data")), At()
    fill(Core(SqliteStore(layout.store, KEY), clock, IdSource(clock, random.Random(1))), clock)
    return layout


@pytest.fixture(params=["sqlite", "postgresql"])
def reader(request: pytest.FixtureRequest) -> UsageReader:
    """A reader of what `fill` wrote."""
    if request.param == "sqlite":
        return SqliteUsage(request.getfixturevalue("filled_folder"))
    return PostgresUsage(request.getfixturevalue("filled"))


async def test_pages_follow_each_other(reader: UsageReader) -> None:
    seen, after = [], 0
    while True:
        page = await reader.records(after, limit=7)
        seen += [record.request_id for record in page.records]
        if page.after is None:
            break
        after = page.after
    assert seen == [f"req_{n}" for n in range(30)]


async def test_one_record(reader: UsageReader) -> None:
    record = await reader.record("req_5")
    assert record is not None
    assert (record.cost, record.usage.output, record.tags, record.attempts) == (
        5000,
        5,
        {"n": "5", "odd": "yes"},
        (ATTEMPT,),
    )
    assert (record.admitted_at, record.finished_at) == (START + 5 * MINUTE, START + 5 * MINUTE)
    assert await reader.record("req_none") is None


async def test_filters(reader: UsageReader) -> None:
    page = await reader.records(filters={"model": "m1"}, limit=1000)
    assert len(page.records) == 15
    with pytest.raises(ValueError, match="filters may be model"):
        await reader.records(filters={"modle": "m1"})


async def test_sums(reader: UsageReader) -> None:
    m0, m1 = await reader.totals("model")
    assert (m0.group, m0.records, m0.cost, m0.usage.output) == (("m0",), 15, 210_000, 210)
    assert (m1.group, m1.records, m1.cost) == (("m1",), 15, 225_000)
    (key,) = await reader.totals("key", since=START + 10 * MINUTE, until=START + 20 * MINUTE)
    assert (key.records, key.usage.output) == (10, sum(range(10, 20)))


async def test_sums_by_several_fields_at_once(reader: UsageReader) -> None:
    found = await reader.totals(["model", "key"], bucket="1h")
    assert {total.group for total in found} == {("m0", "key_1"), ("m1", "key_1")}
    assert sum(total.cost for total in found) == 435_000
    for wrong in ([], ["model", "model"], ["model", "colour"]):
        with pytest.raises(ValueError, match="group_by: expected one"):
            await reader.totals(wrong)


async def test_records_of_a_time(reader: UsageReader) -> None:
    since, until = START + 10 * MINUTE, START + 20 * MINUTE
    page = await reader.records(limit=6, since=since, until=until)
    assert [record.request_id for record in page.records] == [f"req_{n}" for n in range(10, 16)]
    page = await reader.records(page.after or 0, limit=6, since=since, until=until)
    assert ([record.request_id for record in page.records], page.after) == (
        [f"req_{n}" for n in range(16, 20)],
        None,
    )
    assert await reader.records(since=START + 99 * MINUTE) == await reader.records(until=START)


async def test_buckets(reader: UsageReader) -> None:
    minutes = await reader.totals("project", bucket="1m")
    assert [total.bucket_at for total in minutes] == [START + n * MINUTE for n in range(30)]
    hours = await reader.totals("project", bucket="1h")
    assert sum(total.records for total in hours) == 30
    with pytest.raises(ValueError, match="bucket must be"):
        await reader.totals("project", bucket="1y")  # type: ignore[arg-type]


async def test_sums_by_tags(reader: UsageReader) -> None:
    plain, odd = await reader.totals(["tag:odd", "model"])
    assert (plain.group, plain.records, plain.cost) == (("", "m0"), 15, 210_000)
    assert (odd.group, odd.records, odd.usage.output) == (("yes", "m1"), 15, 225)
    by_minute = await reader.totals("tag:n", since=START + 5 * MINUTE, until=START + 8 * MINUTE, bucket="1m")
    assert [(total.bucket_at, total.group) for total in by_minute] == [
        (START + n * MINUTE, (str(n),)) for n in (5, 6, 7)
    ]


@pytest.mark.parametrize("fields", [["tag:n"], ["model"]])
async def test_a_sum_that_would_leave_groups_out_is_refused(
    reader: UsageReader, fields: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("usage", "sqlite_usage", "postgres_usage"):
        monkeypatch.setattr(f"headgate_gateway.admin.{module}.GROUPS", 1)
    with pytest.raises(QueryTooSlow, match="more than 1 groups"):
        await reader.totals(fields)


@pytest.mark.parametrize("odd", ["req_\0", "\ud800", "'", "%s"])
async def test_odd_texts_find_nothing(reader: UsageReader, odd: str) -> None:
    assert await reader.record(odd) is None
    assert (await reader.records(filters={"model": odd})).records == ()
    assert await reader.totals("model", filters={"key": odd}) == ()


async def test_before_the_first_start(tmp_path: Path) -> None:
    reader = SqliteUsage(Layout.of(tmp_path / "nothing"))
    assert (await reader.records()).records == ()
    assert await reader.record("req_1") is None
    assert await reader.totals("model") == ()


# -- what only PostgreSQL can do to a reader


async def test_a_page_stops_before_what_is_still_being_written(copied: str) -> None:
    reader = PostgresUsage(copied)
    with psycopg.connect(copied) as early, psycopg.connect(copied) as late:
        for db, name in ((early, "early"), (late, "late")):
            db.execute("CREATE TEMPORARY TABLE one AS SELECT * FROM usage_records LIMIT 1")
            db.execute(
                "UPDATE one SET request_id = %s, seq = seq + 1000 + length(%s), "
                "position = pg_current_xact_id()::text::bigint * 256",
                (name, name),
            )
            db.execute("INSERT INTO usage_records SELECT * FROM one")
        late.commit()
        seen = await reader.records(limit=1000)
        assert [record.request_id for record in seen.records] == [f"req_{n}" for n in range(30)]
        assert await reader.record("late") is not None  # it is there, but a page must not step over `early`
        early.commit()
        more = await reader.records(seen.records[-1].seq)
        assert [record.request_id for record in more.records] == ["early", "late"]


async def test_times_that_run_against_the_order_are_found(copied: str) -> None:
    with psycopg.connect(copied) as db:
        db.execute("ALTER TABLE usage_records DISABLE TRIGGER usage_records_append_only")
        db.execute("UPDATE usage_records SET finished_us = finished_us + (seq * 7919 % 60 - 30) * 999000")
        times = dict(db.execute("SELECT request_id, finished_us FROM usage_records").fetchall())
    reader = PostgresUsage(copied)
    for since in range(START - MINUTE, START + 31 * MINUTE, MINUTE // 3):
        until = since + 2 * MINUTE
        page = await reader.records(since=since, until=until)
        assert {r.request_id for r in page.records} == {n for n, at in times.items() if since <= at < until}


async def test_a_query_is_stopped_in_time(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_usage, "QUERY_S", 0.2)
    reader = PostgresUsage(database)
    with psycopg.connect(database) as db:
        db.execute("LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE")
        for asked in (reader.records(), reader.record("req_1"), reader.totals("model"), reader.totals("tag:x")):
            with pytest.raises(QueryTooSlow, match=r"0\.2 s"):
                await asked


async def test_a_server_that_freezes_is_hung_up_on(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_usage, "QUERY_S", 1.0)
    monkeypatch.setattr(read_only, "GRACE_S", 0.1)
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(database) as db, psycopg.connect(database, autocommit=True) as watch:
        db.execute("LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE")
        asked = asyncio.create_task(PostgresUsage(database).record("req_1"))
        while (found := watch.execute(waiting).fetchone()) is None:
            await asyncio.sleep(0.01)
        os.kill(found[0], signal.SIGSTOP)
        try:
            with pytest.raises(QueryTooSlow, match="silent"):
                await asked
        finally:
            os.kill(found[0], signal.SIGCONT)


async def test_a_database_that_cannot_be_asked_is_said_to_be_so(postgres_server: Server) -> None:
    empty = postgres_server.database(template="template1")
    for url, told in (
        (empty, "headgate migrate"),
        ("postgresql://u:secret@127.0.0.1:1/d", "cannot be reached"),
    ):
        with pytest.raises(UsageUnavailable, match=told) as caught:
            await PostgresUsage(url).records()
        assert "secret" not in str(caught.value)


async def test_the_log_comes_in_pages(reader: UsageReader) -> None:
    first = await reader.log(limit=2)
    assert [(entry.id, entry.action, entry.target) for entry in first.entries] == [
        (1, "price.set", "m0"), (2, "price.set", "m1"),
    ]  # fmt: skip
    assert first.entries[0].detail["rates"] == {"output": "1"}
    assert first.entries[0].at == START
    rest = await reader.log(after=first.after or 0)
    assert [(entry.action, entry.target) for entry in rest.entries] == [("key.create", "key_1")]
    assert rest.after is None


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_sums_go_beyond_what_one_record_can_have(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    clock = At()
    ids = IdSource(clock, random.Random(2))
    if store == "sqlite":
        layout = Layout.of(tmp_path)
        core: Any = Core(SqliteStore(layout.store, KEY), clock, ids)
        reader: UsageReader = SqliteUsage(layout)
    else:
        url = request.getfixturevalue("postgres_server").database()
        core = PostgresCore(url, tmp_path, KEY, clock, ids, local_time=True)
        reader = PostgresUsage(url)
    price = c.SetPrice(model="m", rates={"output": "9000000000"})
    key = c.Create(id="key_1", digest=b"d" * 32, prefix="hg_", project="p")
    core.run([(Speaker(), wire.Run(1, command)) for command in (price, key)])
    for n in range(3):
        usage = (0, 0, 0, 10**12, 0, 0, 0, 0, 0)  # what an upstream says of a million tokens
        admit = wire.Admit(1, f"req_{n}", "key_1", "m", "chat", (0,) * 9, 10**6, 10**6, False, 2**62)
        core.run([(Speaker(), op) for op in (admit, wire.Settle(1, f"req_{n}", usage, "upstream", "ok", "echo"))])
    core.close()
    (total,) = await reader.totals("model")
    assert (total.records, total.cost, total.overrun) == (3, 3 * 9 * 10**18, 3 * MAX)
    (total,) = await reader.totals("tag:any")
    assert (total.cost, total.overrun) == (3 * 9 * 10**18, 3 * MAX)

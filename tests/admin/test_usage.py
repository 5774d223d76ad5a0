"""Usage queries: pages, filters, sums by group and bucket of time."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from headgate_gateway.admin.usage import UsageReader
from headgate_gateway.domain import commands as c
from headgate_gateway.domain.admission import Attempt
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.core import Core, Speaker
from headgate_gateway.ledger.store.sqlite import SqliteStore

MINUTE = 60_000_000
START = 1_795_000_000 * 1_000_000 // MINUTE * MINUTE
ATTEMPT = Attempt(backend="echo", target="a", outcome="ok", started_us=1, ended_us=2)


class At:
    us = START

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def reader(tmp_path: Path) -> Any:
    """Thirty records: one a minute, models m0 and m1 in turn, n tokens in the n-th."""
    layout, clock = Layout.of(tmp_path), At()
    core = Core(SqliteStore(layout.store, chain_key(b"x")), clock, IdSource(clock, random.Random(1)))

    def run(op: Any) -> Any:
        return core.run([(Speaker(), op)])[0]

    for model in ("m0", "m1"):
        run(wire.Run(1, c.SetPrice(model=model, rates={"output": "1"})))
    run(wire.Run(1, c.Create(id="key_1", digest=b"d" * 32, prefix="hg_", project="p")))
    for n in range(30):
        run(
            wire.Admit(
                1, f"req_{n}", "key_1", f"m{n % 2}", "chat", (0,) * 9, n, n, False, 2**62, tags={"n": str(n)}
            )
        )
        run(
            wire.Settle(
                1, f"req_{n}", (0, 0, 0, n, 0, 0, 0, 1, 0), "upstream", "ok", "echo",
                attempts=msgspec.msgpack.encode((ATTEMPT,)),
            )
        )  # fmt: skip
        clock.us += MINUTE
    core.close()
    return UsageReader(layout)


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
    assert (record.cost, record.usage.output, record.tags, record.attempts) == (5000, 5, {"n": "5"}, (ATTEMPT,))
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


async def test_before_the_first_start(tmp_path: Path) -> None:
    reader = UsageReader(Layout.of(tmp_path / "nothing"))
    assert (await reader.records()).records == ()
    assert await reader.record("req_1") is None
    assert await reader.totals("model") == ()

"""Erasing tags: those that are meant and no others, on both stores, and what queries say afterwards."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.admin import erasing
from headgate_gateway.admin.audit import audit
from headgate_gateway.admin.erasing import EraseTags, carry_out, erase, take_steps
from headgate_gateway.admin.service import CommandRejected
from headgate_gateway.admin.usage import UsageReader, usage_reader
from headgate_gateway.domain import commands as c
from headgate_gateway.domain import keys
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.core import Core, Speaker
from headgate_gateway.ledger.postgres.core import PostgresCore
from headgate_gateway.ledger.store.sqlite import SqliteStore
from headgate_gateway.settings import Server, Settings, Store

PEPPER = "p" * 32
START = 1_795_000_000_000_000
MINUTE = 60_000_000


class At:
    us = START

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return 0.0


class Deployment:
    """A ledger with two projects, a request a minute, whose users are a and b in turn."""

    def __init__(self, settings: Settings, core: Any, clock: At) -> None:
        self.settings, self.core, self.clock = settings, core, clock
        self.reader: UsageReader = usage_reader(settings)
        self.do(c.SetPrice(model="m", rates={"output": "1"}))
        for n in range(2):
            digest = keys.digest(str(n), PEPPER.encode())
            self.do(c.Create(id=f"key_{n}", digest=digest, prefix="hg_", project=f"p{n}"))
        for n in range(24):
            tags = {"user": "ab"[n % 2], "n": str(n)} if n % 3 else {}
            self.run(
                wire.Admit(
                    1, f"req_{n:02d}", f"key_{n // 12}", "m", "chat", (0,) * 9, n, n, False, 2**62, tags=tags
                )
            )
            self.run(wire.Settle(1, f"req_{n:02d}", (0, 0, 0, n, 0, 0, 0, 0, 0), "upstream", "ok", "echo"))
            clock.us += MINUTE

    def run(self, op: Any) -> Any:
        return self.core.run([(Speaker(), op)])[0]

    def do(self, command: Any) -> Any:
        return self.run(wire.Run(1, command, "test")).result

    def erase(self, **asked: Any) -> erasing.TagsErased:
        return take_steps(erase(self.reader, EraseTags(**asked), self.settings), self.do)

    async def erased(self) -> list[int]:
        """Numbers of the requests whose tags were erased."""
        page = await self.reader.records(limit=1000)
        assert all(not record.tags for record in page.records if record.erased)
        assert [
            int(record.request_id[4:]) for record in page.records if not record.tags and not record.erased
        ] == [n for n in range(24) if n % 3 == 0]
        return [int(record.request_id[4:]) for record in page.records if record.erased]


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    clock = At()
    monkeypatch.setenv("PEPPER", PEPPER)
    server = Server(data_dir=tmp_path, pepper="env:PEPPER")
    ids = IdSource(clock, random.Random(1))
    if request.param == "sqlite":
        settings = Settings(server=server)
        store = SqliteStore(settings.layout.store, chain_key(PEPPER.encode()), tmp_path / "chain.head")
        core: Any = Core(store, clock, ids)
    else:
        url = request.getfixturevalue("postgres_server").database()
        settings = Settings(server=server, store=Store(url=url))
        core = PostgresCore(url, tmp_path, chain_key(PEPPER.encode()), clock, ids, local_time=True)
    with closing(core):
        yield Deployment(settings, core, clock)
        report = audit(settings, full=True)
        assert report.ok, report.first_difference


async def test_by_a_tag(deployment: Deployment) -> None:
    assert deployment.erase(tags={"user": "a"}).erased == 8
    assert await deployment.erased() == [n for n in range(24) if n % 3 and n % 2 == 0]
    assert deployment.erase(tags={"user": "a"}).erased == 0
    assert deployment.erase(tags={"user": "A"}).erased == 0
    assert deployment.erase(tags={"n": "1", "user": "b"}).erased == 1
    assert deployment.erase(tags={"n": "5", "user": "a"}).erased == 0


async def test_by_age_and_project(deployment: Deployment) -> None:
    assert deployment.erase(before=START + 4 * MINUTE).erased == 2
    assert await deployment.erased() == [1, 2]
    assert deployment.erase(tags={"user": "b"}, project="p1", before=START + 18 * MINUTE).erased == 2
    assert await deployment.erased() == [1, 2, 13, 17]
    assert deployment.erase(project="p1", before=2**62).erased == 6
    assert await deployment.erased() == [1, 2, *(n for n in range(12, 24) if n % 3)]


async def test_what_queries_say_then(deployment: Deployment) -> None:
    before = {total.group: total.cost for total in await deployment.reader.totals("tag:user")}
    deployment.erase(tags={"user": "a"})
    after = {total.group: total.cost for total in await deployment.reader.totals("tag:user")}
    assert after == {("",): before["",] + before["a",], ("b",): before["b",]}
    record = await deployment.reader.record("req_02")
    assert record is not None
    assert (record.tags, record.erased, record.cost) == ({}, True, 2000)
    other = await deployment.reader.record("req_01")
    assert other is not None
    assert (other.tags, other.erased) == ({"user": "b", "n": "1"}, False)


async def test_the_log_says_who_and_how_many_and_nobodys_name(deployment: Deployment) -> None:
    deployment.erase(tags={"user": "a", "n": "2"}, project="p0", before=2**60)
    entry = (await deployment.reader.log(limit=1000)).entries[-1]
    project = deployment.do(c.GetAccount(id="p0")).account.id
    assert (entry.actor, entry.action, entry.target) == ("test", "personal.erase", project)
    assert entry.detail == {"rows": 1, "tags": ["n", "user"], "project": project, "before": 2**60}


async def test_many_are_erased_a_few_at_a_time(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever asked goes on where it stopped, however often."""
    monkeypatch.setattr(erasing, "SCANNED", 6)
    monkeypatch.setattr(erasing, "SCATTERED", 2)
    monkeypatch.setattr(erasing, "MOST_ERASED", 3)
    for module in ("sqlite_usage", "postgres_usage"):
        limited = f"headgate_gateway.admin.{module}.SET_ASIDE"
        monkeypatch.setattr(limited, erasing_slices(4))
    asked, erased, turns = EraseTags(tags={"user": "b"}), 0, 0
    while True:
        done = await carry_out(erase(deployment.reader, asked, deployment.settings), answer(deployment))
        erased, turns = erased + done.erased, turns + 1
        if done.after is None:
            break
        asked = EraseTags(tags={"user": "b"}, after=done.after)
    assert (erased, turns) == (8, 3)
    entries = (await deployment.reader.log(limit=1000)).entries
    assert sum(entry.detail["rows"] for entry in entries if entry.action == "personal.erase") == 8


def erasing_slices(rows: int) -> str:
    """The query of a slice, of so many rows."""
    from headgate_gateway.admin.usage import SET_ASIDE

    return SET_ASIDE.replace("LIMIT 2000", f"LIMIT {rows}")


def answer(deployment: Deployment) -> Any:
    """The ledger's answers, as a worker has them."""

    async def command(asked: Any) -> Any:
        return deployment.do(asked)

    return command


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "tags"),
        ({"project": "p0"}, "tags"),
        ({"tags": {"a": "b"}, "project": "p9"}, "account"),
        ({"tags": {"a": "b"}, "project": "key_0"}, "project"),
        ({"tags": {"a": "b"}, "project": "default"}, "project"),
        ({"tags": {"a": "b"}, "after": "somewhere"}, "after"),
        ({"tags": {"a": "b"}, "after": "99999999999999999999.r"}, "after"),
    ],
)
async def test_what_cannot_be_meant(deployment: Deployment, asked: dict[str, Any], field: str) -> None:
    with pytest.raises(CommandRejected) as caught:
        deployment.erase(**asked)
        raise AssertionError
    assert caught.value.rejected.field == field
    assert await deployment.erased() == []


@pytest.mark.parametrize("after", ["9223372036854775808.r", "9999999999999999999.r", "0.\0", "0.\ud800", "-1.x"])
async def test_odd_places_to_go_on_from(deployment: Deployment, after: str) -> None:
    try:
        assert deployment.erase(tags={"nobody": "x"}, after=after).erased == 0
    except CommandRejected as error:
        assert error.rejected.field == "after"


def test_before_the_first_start(tmp_path: Path) -> None:
    settings = Settings(server=Server(data_dir=tmp_path / "nothing"))
    steps = erase(usage_reader(settings), EraseTags(tags={"user": "a"}), settings)
    assert take_steps(steps, lambda _: None).erased == 0


def test_copies_that_still_have_them_are_named(tmp_path: Path) -> None:
    settings = Settings(server=Server(data_dir=tmp_path))
    for number, table in enumerate(("usage_records", "personal", "personal")):
        with closing(sqlite3.connect(f"{settings.layout.store}.before-000{number}")) as db:
            db.execute(f"CREATE TABLE {table} (x)")
    steps = erase(usage_reader(settings), EraseTags(before=1), settings)
    assert take_steps(steps, lambda _: None).copies == (
        "headgate.sqlite.before-0001", "headgate.sqlite.before-0002",
    )  # fmt: skip

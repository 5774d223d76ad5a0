"""What a node does besides serving: ends what lost nodes and dead workers left open, and hangs over none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from headgate_gateway.ledger import sealing, wire
from headgate_gateway.ledger.core import BATCH, Speaker
from headgate_gateway.ledger.flight import FlightFile
from headgate_gateway.ledger.postgres import server as served
from headgate_gateway.ledger.postgres.read_only import TooLong
from headgate_gateway.ledger.postgres.server import PostgresServer
from headgate_gateway.ledger.store import StoreBroken
from headgate_gateway.settings import Server, Settings, Store

from tests.ledger.conftest import PEPPER

NewBench = Callable[..., Any]

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN IF NEW.request_id < '{}' THEN RAISE check_violation; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuses BEFORE INSERT ON usage_records FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture(autouse=True)
def nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done every few seconds is done by the test."""
    monkeypatch.setattr(served, "TIDY_EVERY_S", 3600.0)


def server_of(bench: Any) -> PostgresServer:
    layout = bench.layout
    return PostgresServer(
        bench.core, layout.ledger_socket, layout.flight(0).parent, pepper=PEPPER, admin_digest=b""
    )


@asynccontextmanager
async def serving(bench: Any) -> AsyncIterator[PostgresServer]:
    server = server_of(bench)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
        bench.core = bench._open()


def open_holds(url: str) -> list[str]:
    with psycopg.connect(url) as db:
        return [id_ for (id_,) in db.execute("SELECT request_id FROM holds ORDER BY request_id")]


async def test_what_a_lost_node_left_open_ends_batch_after_batch_without_a_rest(
    new_postgres_bench: NewBench,
) -> None:
    lost, other = new_postgres_bench("lost", seed=1), new_postgres_bench("other", seed=2, silent_s=0.0)
    lost.price()
    key = lost.key("1/total")
    for _ in range(2 * BATCH + 5):
        assert isinstance(lost.admit(key), wire.Grant)
    async with serving(other) as server:
        await server._tidy()
        assert [await server._end_lost() for _ in range(3)] == [True, True, False]
        assert open_holds(other.url) == []


async def test_what_cannot_be_ended_does_not_keep_the_rest_open(new_postgres_bench: NewBench) -> None:
    lost, other = new_postgres_bench("lost", seed=1), new_postgres_bench("other", seed=2, silent_s=0.0)
    lost.price()
    key = lost.key("1/total")
    granted = sorted(lost.admit(key).request_id for _ in range(BATCH + 5))
    with psycopg.connect(other.url) as db:
        db.execute(REFUSE.format(granted[BATCH]).encode())
    async with serving(other) as server:
        await server._tidy()
        assert [await server._end_lost() for _ in range(2)] == [True, False]
        assert open_holds(other.url) == granted[:BATCH]
        with psycopg.connect(other.url) as db:
            db.execute("DROP TRIGGER refuses ON usage_records")
        while await server._end_lost():
            continue
        assert open_holds(other.url) == []


async def test_a_worker_that_comes_while_orphans_are_looked_for_has_none(new_postgres_bench: NewBench) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key("1/total")
    async with serving(bench) as server:
        asked = bench.core.incarnations
        files: list[FlightFile] = []

        def meanwhile() -> set[str]:
            files.append(FlightFile(bench.layout.flight(3), 3, slots=8))
            bench.speaker = Speaker(3, files[-1].incarnation)
            assert isinstance(bench.admit(key, request_id="req_living"), wire.Grant)
            found: set[str] = asked()
            return found

        bench.core.incarnations = meanwhile
        await server.recover_orphans()
        assert open_holds(bench.url) == ["req_living"]
        files[0].path.unlink()
        bench.core.incarnations = asked
        await server.recover_orphans()
        assert open_holds(bench.url) == []


async def test_a_start_whose_recovery_breaks_ends_instead_of_hanging(
    new_postgres_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key("1/total")
    file = FlightFile(bench.layout.flight(3), 3, slots=8)
    bench.speaker = Speaker(3, file.incarnation)
    file.take(bench.admit(key).request_id)
    file.close()

    def unknown(number: int, operations: Any) -> list[wire.Reply]:
        raise StoreBroken("whether it was committed cannot be found out")

    with monkeypatch.context() as patched:
        patched.setattr(bench.core, "run_in_lane", unknown)
        server = server_of(bench)
        async with asyncio.timeout(20):
            with pytest.raises(StoreBroken, match="cannot be found out"):
                await server.start()
        await server.close()
    bench.core = bench._open()
    assert file.path.exists()
    async with serving(bench):
        assert open_holds(bench.url) == []


def test_whether_a_seal_is_due_is_not_waited_for(
    url: str, new_postgres_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "LOOK_S", 0.3, raising=False)
    bench = new_postgres_bench()
    bench.price()
    settings = Settings(server=Server(data_dir=bench.folder), store=Store(url=url))
    with psycopg.connect(url) as db:
        db.execute("LOCK TABLE seals")
        with pytest.raises((psycopg.Error, TooLong)):
            sealing._due_in(settings, bench.clock)
        db.rollback()
    assert not sealing._due_in(settings, bench.clock)

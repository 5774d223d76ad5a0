"""The ledger's socket in this process: what it does when the store breaks, and what its clients do without it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from headgate_engine import ipc
from headgate_gateway.domain import keys
from headgate_gateway.domain.admission import Admission, Granted, Principal, Refused, Settlement
from headgate_gateway.domain.commands import (
    AccountPage,
    CreateAccount,
    Done,
    GrantCredit,
    ListAccounts,
    Rejected,
    RevokeKey,
)
from headgate_gateway.ledger import line as line_module
from headgate_gateway.ledger import server as ledger_server
from headgate_gateway.ledger import snapshot, wire
from headgate_gateway.ledger.book import Writes
from headgate_gateway.ledger.client import LOOKUPS, LedgerClient
from headgate_gateway.ledger.core import BATCH, Core, Speaker
from headgate_gateway.ledger.flight import FlightFile
from headgate_gateway.ledger.line import LedgerUnavailable, Line
from headgate_gateway.ledger.server import LedgerServer
from headgate_gateway.ledger.store import StoreBroken, StoreFailed, StoreRefused
from headgate_gateway.ledger.store.sqlite import SqliteStore
from headgate_plugin_api import Usage

from tests.ledger.conftest import NEVER, PEPPER


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


class FailsOnce:
    """A store of which one write fails; the next succeeds."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, writes: Writes, at_us: int) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self._store.commit(writes, at_us)


class Served:
    """A ledger that serves in this process, on a store that can be told to fail."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.store = FailsOnce(bench.core._store)
        bench.core = Core(self.store, bench.clock, bench.ids)
        self.server = self._server()

    def _server(self) -> LedgerServer:
        layout = self.bench.layout
        return LedgerServer(
            self.bench.core, layout.ledger_socket, layout.flight(0).parent, pepper=PEPPER, admin_digest=b""
        )

    async def restart(self) -> None:
        """Start what ended."""
        await asyncio.gather(*self.server._tasks, return_exceptions=True)
        self.server = self._server()
        await self.server.start()

    def end(self) -> None:
        """The process ends at once, and this is what the next one finds."""
        server = self.server
        for task in server._tasks:
            task.cancel()
        if server._server is not None:
            server._server.close()
        for client in list(server._clients):
            client.connection.close()
        self.bench.core = Core(self.store, self.bench.clock, self.bench.ids)


@pytest.fixture
async def served(bench: Any) -> AsyncIterator[Served]:
    served = Served(bench)
    yield served
    served.end()


async def worker_that_died(served: Served, error: Exception) -> tuple[Any, FlightFile]:
    """Its key and its file, which says that 7 are due; the store answers the recovery with an error."""
    bench = served.bench
    bench.price()
    key = bench.key("1/total")
    await served.server.start()
    file = FlightFile(bench.layout.flight(3), 3, slots=8)
    bench.speaker = Speaker(3, file.incarnation)
    granted = bench.admit(key)
    slot = file.take(granted.request_id)
    assert slot is not None
    file.end(slot, (0, 0, 0, 7, 0, 0, 0, 0, 0), "ok", "upstream", billed=True)
    served.store.error = error
    file.close()
    return key, file


async def test_a_store_that_breaks_in_a_recovery_ends_the_ledger_and_loses_nothing(served: Served) -> None:
    key, file = await worker_that_died(served, StoreBroken("input/output error"))
    async with asyncio.timeout(5):
        await served.server.broken
    assert file.path.exists()
    served.end()
    await served.restart()
    assert served.bench.budgets(key)["total"].spent == 7


async def test_what_a_store_refuses_in_a_recovery_is_kept(served: Served) -> None:
    key, file = await worker_that_died(served, StoreRefused("a constraint"))
    await served.server.recover()
    assert served.store.error is None
    assert file.path.exists()
    served.end()
    await served.restart()
    assert served.bench.budgets(key)["total"].spent == 7


async def test_what_a_store_refuses_in_a_recovery_rests_and_is_told_once(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    key, file = await worker_that_died(served, StoreRefused("a constraint"))
    for _ in range(5):
        await served.server.recover()
    assert file.path.exists()
    await until(lambda: not file.path.exists())
    assert served.bench.budgets(key)["total"].spent == 7
    assert caplog.text.count("worker 3 died") == 1


async def test_a_flight_file_that_cannot_be_read_keeps_no_other_back(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    flights = served.bench.layout.flight(0).parent
    (flights / "worker-0-a.flight").mkdir(parents=True)
    (flights / "worker-0-b.flight").symlink_to("worker-0-b.flight")
    key, file = await worker_that_died(served, StoreFailed("no"))
    await until(lambda: not file.path.exists())
    await until(lambda: "housekeeping failed" in caplog.text)
    with pytest.raises(OSError, match=r"worker-0-b|directory"):
        await served.server.recover()
    assert served.bench.budgets(key)["total"].spent == 7
    assert caplog.text.count("housekeeping failed") == 1


async def test_an_answer_that_is_too_long_costs_nobody_else_theirs(served: Served, client: LedgerClient) -> None:
    key = served.bench.key()
    served.server._codec.max_frame = 200
    accounts, granted = await asyncio.gather(
        client.command(ListAccounts()), client.admit(admission(key, "req_1"))
    )
    assert isinstance(granted, Granted)
    assert isinstance(accounts, Rejected)
    assert "too long" in accounts.message


async def test_what_has_expired_goes_faster_than_it_comes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_server, "TIDY_EVERY_S", 1.0)
    db = served.store._store._db
    keys_ = [("p", str(n), b"", "req_1", "spent", 1, 0) for n in range(3_000)]
    db.executemany("INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?)", keys_)
    await served.server.start()
    await until(lambda: db.execute("SELECT count(*) FROM claims").fetchone() == (0,))


async def test_settlements_overtake_admissions(served: Served, client: LedgerClient) -> None:
    bench = served.bench
    key = bench.key()
    assert isinstance(await client.admit(admission(key, "req_0")), Granted)
    batches: list[list[type]] = []
    run = bench.core.run
    bench.core.run = lambda batch: batches.append([type(op) for _, op in batch]) or run(batch)
    later = [asyncio.create_task(client.admit(admission(key, f"req_{n}"))) for n in range(1, BATCH + 1)]
    await asyncio.sleep(0)  # they are on their way
    await client.settle(
        Settlement(
            request_id="req_0", usage=Usage(output=1), usage_source="upstream", outcome="ok", backend="echo"
        )
    )
    assert batches[0][0] is wire.Settle
    assert len(batches[0]) == BATCH
    assert {type(answer) for answer in await asyncio.gather(*later)} == {Granted}


@pytest.fixture
async def client(served: Served) -> AsyncIterator[LedgerClient]:
    await served.server.start()
    client = LedgerClient(served.bench.layout, worker=0, clock=served.bench.clock)
    await client.start()
    yield client
    await client.close()


async def test_holds_that_a_reconnecting_worker_does_not_declare_are_given_back(
    served: Served, client: LedgerClient
) -> None:
    bench = served.bench
    bench.price()
    key = bench.key("1/total")
    principal = Principal(key_id=key, project_id="p", organization_id="o")
    for name in ("req_kept", "req_lost"):
        admission = Admission(
            request_id=name, principal=principal, model="m", task="chat", bound=Usage(), least_output=10,
            most_output=10,
        )  # fmt: skip
        assert isinstance(await client.admit(admission), Granted)
    client._slots.pop("req_lost")
    (known,) = served.server._clients
    known.connection.abort()
    await until(lambda: bench.budgets(key)["total"].held == 10)
    usage = Usage(output=3)
    kept = Settlement(request_id="req_kept", usage=usage, usage_source="upstream", outcome="ok", backend="echo")
    assert (await client.settle(kept)).cost == 3


async def test_what_an_operator_was_told_came_to_nothing_is_not_done_later(
    served: Served, client: LedgerClient
) -> None:
    key = served.bench.key()
    served.end()
    await until(lambda: not client.connected)
    grant = wire.Run(client._line.number(), GrantCredit(account=key, amount="5"), "test")
    assert await client._line.post(grant, wait_s=0).future is None
    await served.restart()
    await until(lambda: client.connected)
    page = await client.command(ListAccounts())
    assert isinstance(page, AccountPage)
    assert [account.budgets for account in page.accounts if account.id == key] == [()]


async def test_what_cannot_be_said_to_the_ledger_is_refused_and_nothing_else(
    served: Served, client: LedgerClient
) -> None:
    principal = Principal(key_id=served.bench.key(), project_id="p", organization_id="o")
    unsayable = Admission(
        request_id="req_1", principal=principal, model="m", task="chat", bound=Usage(), least_output=1,
        most_output=1, tags={"team": "\udcff"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="surrogates"):
        await client.admit(unsayable)
    refused = await client.command(CreateAccount(kind="project", name="\udcff"))
    assert isinstance(refused, Rejected)
    assert refused.code == "invalid"
    served.end()
    await until(lambda: not client.connected)
    waiting = asyncio.create_task(client.admit(unsayable))
    await asyncio.sleep(0)
    await served.restart()
    async with asyncio.timeout(5):
        with pytest.raises(ValueError, match="surrogates"):
            await waiting
        assert isinstance(await client.command(ListAccounts()), AccountPage)
    assert client._line.unanswered == 0
    assert not client._slots


async def test_a_settlement_that_the_store_cannot_take_now_is_sent_again(
    served: Served, client: LedgerClient
) -> None:
    served.bench.price()
    key = served.bench.key("1/total")
    assert isinstance(await client.admit(admission(key, "req_1")), Granted)
    served.store.error = StoreFailed("no")
    settlement = Settlement(
        request_id="req_1", usage=Usage(output=1), usage_source="upstream", outcome="ok", backend="echo"
    )
    assert (await client.settle(settlement)).cost == 1
    assert served.store.error is None
    assert client._line.unanswered == 0


async def test_a_settlement_that_the_store_refuses_is_left_to_the_flight_file(
    served: Served, client: LedgerClient
) -> None:
    bench = served.bench
    bench.price()
    key = bench.key("1/total")
    principal = Principal(key_id=key, project_id="p", organization_id="o")
    admission = Admission(
        request_id="req_1", principal=principal, model="m", task="chat", bound=Usage(), least_output=9,
        most_output=9, deadline_ms=5000,
    )  # fmt: skip
    assert isinstance(await client.admit(admission), Granted)
    served.store.error = StoreRefused("no")
    with pytest.raises(LedgerUnavailable):
        await client.settle(
            Settlement(
                request_id="req_1", usage=Usage(output=7), usage_source="upstream", outcome="ok", backend="echo"
            )
        )
    await client.close()
    await until(lambda: not client._flight.path.exists())  # type: ignore[union-attr]
    await until(lambda: bench.budgets(key)["total"].held == 0)
    assert bench.budgets(key)["total"].spent == 7


def admission(key: str, request_id: str) -> Admission:
    principal = Principal(key_id=key, project_id="p", organization_id="o")
    return Admission(
        request_id=request_id, principal=principal, model="m", task="chat", bound=Usage(), least_output=1,
        most_output=1,
    )  # fmt: skip


async def test_what_is_too_much_is_refused(
    served: Served, client: LedgerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = served.bench.key()
    monkeypatch.setattr(ledger_server, "ADMITS_WAITING", 10)
    answers = await asyncio.gather(*(client.admit(admission(key, f"req_{n}")) for n in range(30)))
    granted = [answer for answer in answers if isinstance(answer, Granted)]
    assert len(granted) == 10
    assert {answer.code for answer in answers if isinstance(answer, Refused)} == {"overloaded"}

    assert client._flight is not None
    client._flight._free.clear()
    full = await client.admit(admission(key, "req_slot"))
    assert isinstance(full, Refused)
    assert full.code == "overloaded"


async def test_a_worker_asks_no_more_than_so_much_at_once(bench: Any) -> None:
    async with odd_ledger(bench.layout.ledger_socket):
        client = LedgerClient(bench.layout, worker=0, clock=bench.clock, max_waiting=2)
        await client.start()
        waiting = [asyncio.create_task(client.admit(admission("key_1", f"req_{n}"))) for n in range(2)]
        await asyncio.sleep(0)
        refused = await client.admit(admission("key_1", "req_3"))
        assert isinstance(refused, Refused)
        assert refused.code == "overloaded"
        await client.close()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_key_that_nobody_knows_is_asked_for_once(
    served: Served, client: LedgerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "UNKNOWN", 2)
    asked: list[bytes] = []
    identify = served.bench.core.identify
    served.bench.core.identify = lambda digest: asked.append(digest) or identify(digest)
    presented = [keys.generate_key(random.Random(n)) for n in range(3)]
    for key in (*presented, *presented[1:]):
        assert isinstance(await client.authenticate(key), Refused)
    assert len(asked) == 3
    await client.authenticate(presented[0])  # as many are remembered as there is room for
    assert len(asked) == 4


async def test_who_a_key_was_is_not_remembered_past_a_change(bench: Any) -> None:
    asked: list[bytes] = []
    principal = Principal(key_id="key_1", project_id="p", organization_id="o")

    def revoke_meanwhile(connection: Any, message: wire.ToLedger) -> None:
        if isinstance(message, wire.Hello):
            connection.send(wire.Welcome(PEPPER, b"", []))
        elif isinstance(message, wire.Identify):
            asked.append(message.digest)
            connection.send(wire.Changed(1, ["key_1"]))
            connection.send(wire.Identity(message.n, principal))

    key = keys.generate_key(random.Random(3))
    async with odd_ledger(bench.layout.ledger_socket, revoke_meanwhile):
        client = LedgerClient(bench.layout, worker=-1, clock=bench.clock)
        await client.start()
        await client.authenticate(key)
        await client.authenticate(key)
        await client.close()
    assert len(asked) == 2


async def raw_worker(bench: Any, worker: int, incarnation: str = "") -> ipc.Connection[wire.FromLedger]:
    """A worker's connection, that takes no notice of what the ledger says."""
    codec: ipc.Codec[wire.FromLedger] = ipc.Codec(wire.FromLedger)
    connection = await ipc.connect(
        bench.layout.ledger_socket, lambda: ipc.Connection(codec, lambda _connection, _message: None)
    )
    connection.send(wire.Hello(wire.PROTOCOL, worker, incarnation, []))
    return connection


async def test_a_revoke_does_not_wait_for_a_worker_that_says_nothing(
    served: Served, client: LedgerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_server, "SEEN_TIMEOUT_S", 0.1)
    key = served.bench.key()
    mute = await raw_worker(served.bench, 1)
    await until(lambda: served.server.clients == 2)
    async with asyncio.timeout(5):
        assert await client.command(RevokeKey(id=key)) == Done(id=key)
        await mute.closed()  # so that it asks again whatever it knows
    assert client.connected


async def test_a_ledger_that_stood_still_blames_nobody(
    served: Served, client: LedgerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_server, "SEEN_TIMEOUT_S", 0.1)
    key, tell = served.bench.key(), served.server._tell

    def tell_and_stall(*changed: Any) -> None:
        tell(*changed)
        asyncio.get_running_loop().call_soon(time.sleep, 1.0)  # as while a disk is busy with others

    monkeypatch.setattr(served.server, "_tell", tell_and_stall)
    assert await client.command(RevokeKey(id=key)) == Done(id=key), "its first answer, not that of another try"


async def test_what_a_worker_asked_for_as_it_died_is_not_begun_after_its_recovery(served: Served) -> None:
    bench, server = served.bench, served.server
    key = bench.key()
    await server.start()
    file = FlightFile(bench.layout.flight(3), 3, slots=512)
    connection = await raw_worker(bench, 3, file.incarnation)
    for n in range(300):
        file.take(f"req_{n}")
        connection.send(wire.Admit(n, f"req_{n}", key, "m", "chat", (0,) * 9, 1, 1, False, NEVER))
    while not server._admits:
        await asyncio.sleep(0)
    file.close()
    await server.recover()
    connection.abort()
    await until(lambda: not file.path.exists() and not server._admits)
    assert not bench.core.incarnations()
    db = served.store._store._db
    assert db.execute("SELECT count(*) FROM usage_records").fetchone() == (0,)


def say_nothing(connection: Any, _message: wire.ToLedger) -> None:
    """Welcomes, and then neither answers nor reads."""
    connection.send(wire.Welcome(PEPPER, b"", []))
    connection._transport.pause_reading()


@asynccontextmanager
async def odd_ledger(
    socket: Path, on_message: Callable[[Any, wire.ToLedger], None] = say_nothing
) -> AsyncIterator[None]:
    """One that answers as a test wants."""

    codec: ipc.Codec[wire.ToLedger] = ipc.Codec(wire.ToLedger)
    connections: list[ipc.Connection[wire.ToLedger]] = []

    def accept() -> ipc.Connection[wire.ToLedger]:
        connections.append(ipc.Connection(codec, on_message))
        return connections[-1]

    server = await ipc.listen(socket, accept)
    yield
    server.close()
    for connection in connections:
        connection.abort()


async def test_keys_that_nobody_knows_do_not_wait_behind_each_other(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headgate_gateway.ledger.client.LOOKUP_WAIT_S", 0.2, raising=False)
    draw = random.Random(5)
    async with odd_ledger(bench.layout.ledger_socket):
        client = LedgerClient(bench.layout, worker=-1, clock=bench.clock)
        await client.start()
        presented = [keys.generate_key(draw) for _ in range(3 * LOOKUPS)]
        async with asyncio.timeout(5):
            found = await asyncio.gather(*map(client.authenticate, presented))
        assert {one.code for one in found if isinstance(one, Refused)} == {"ledger_unavailable"}
        await client.close()


async def test_a_client_closes_although_the_ledger_reads_nothing(bench: Any) -> None:
    async with odd_ledger(bench.layout.ledger_socket):
        client = LedgerClient(bench.layout, worker=-1, clock=bench.clock)
        await client.start()
        settlement = Settlement(
            request_id="req_1",
            usage=Usage(),
            usage_source="upstream",
            outcome="ok",
            backend="echo",
            answer=bytes(1 << 20),
        )
        client.settling(settlement)
        async with asyncio.timeout(5):
            await client.close()


async def test_a_ledger_of_another_protocol_is_asked_ever_more_rarely_and_named_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await served.server.start()
    pauses: list[float] = []
    rest = asyncio.sleep

    async def sleep(seconds: float) -> None:
        task = asyncio.current_task()
        if task is not None and task is line._runner:
            pauses.append(seconds)
            seconds = 0
        await rest(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    line = Line(
        served.bench.layout.ledger_socket,
        hello=lambda: wire.Hello(wire.PROTOCOL + 1, -1, "", []),
        welcomed=lambda _: None,
        news=lambda _: None,
        answered=lambda _waiting, _answer: None,
        draw=random.Random(1),
    )
    with pytest.raises(
        LedgerUnavailable, match=f"speaks protocol {wire.PROTOCOL + 1}, the ledger {wire.PROTOCOL}"
    ):
        await line.start()
    line._closing = False
    line._runner = asyncio.create_task(line._stay_connected())
    await until(lambda: len(pauses) >= 15)
    await line.close()
    assert pauses[-1] > 4
    refusals = [record.levelname for record in caplog.records if "refuses this process" in record.message]
    assert refusals == ["ERROR"]


async def test_a_ledger_that_comes_back_is_found_soon_again(
    served: Served, client: LedgerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = client._line
    for _ in range(3):
        served.end()
        await until(lambda: not client.connected)
        await until(lambda: line._pause > line_module.RECONNECT_S[0])
        await served.restart()
        await until(lambda: client.connected)
        assert line._pause == line_module.RECONNECT_S[0]

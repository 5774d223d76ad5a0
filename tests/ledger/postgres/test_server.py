"""The ledger's socket on PostgreSQL: nodes, lanes on threads, a database that is silent, gone or killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from headgate_gateway.admin.commands import ListAccounts, RevokeKey, SetPrice
from headgate_gateway.domain.admission import Granted, Principal, Refused, Settlement
from headgate_gateway.domain.commands import SetBudget
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.ledger.embedded import momentary_ledger
from headgate_gateway.ledger.line import LedgerUnavailable
from headgate_gateway.ledger.postgres import server as served
from headgate_gateway.ledger.postgres.audit import audit
from headgate_gateway.ledger.process import locked, serving
from headgate_gateway.ledger.store import StoreFailed
from headgate_gateway.settings import Model, Price, Server, Settings, Store
from headgate_gateway.supervisor.price_sync import sync_prices
from headgate_plugin_api import Usage

from tests.ledger.data_folder import DataFolder

PEPPER = "p" * 32


class Node(DataFolder):
    """A data folder of its own on a shared database; its ledger runs in this process or in one of its own."""

    def __init__(self, folder: Path, url: str, seed: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(Settings(server=Server(data_dir=folder), store=Store(url=url)), seed)
        self.layout.pepper.write_text(PEPPER)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Any]:
        with locked(self.layout):
            async with serving(self.settings, self.layout) as server:
                yield server


@pytest.fixture
def new_node(tmp_path: Path, url: str) -> Iterator[Callable[..., Node]]:
    """Nodes on one database; what they leave behind is audited."""
    made: list[Node] = []

    def new(name: str = "node", url: str = url, **more: Any) -> Node:
        made.append(Node(tmp_path / name, url, **more))
        return made[-1]

    yield new
    for node in made:
        if node.ledger is not None and node.ledger.poll() is None:
            assert node.stop() == 0
    for node in made:
        report = audit(url, node.layout.data_dir, pepper=PEPPER.encode())
        assert report.ok, report.first_difference


async def until(condition: Callable[[], Awaitable[Any]], within: float = 30.0) -> Any:
    """Wait for a condition."""
    async with asyncio.timeout(within):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


def settlement(request_id: str, output: int) -> Settlement:
    return Settlement(
        request_id=request_id, usage=Usage(output=output), usage_source="upstream", outcome="ok", backend="echo"
    )


async def budget(client: LedgerClient, account: str) -> Any:
    page = await client.command(ListAccounts(limit=1000))
    (found,) = [found for found in page.accounts if account in (found.id, found.name)]
    return found.budgets[0]


class Callers:
    """Callers on one node that admit and settle without pause and write down what it must come to."""

    def __init__(self, node: Node, client: LedgerClient, principal: Principal, count: int = 12) -> None:
        self.node, self.client, self.principal = node, client, principal
        self.costs: dict[str, int] = {}
        self.stop = asyncio.Event()
        self.tasks = [asyncio.create_task(self.call(random.Random(seed))) for seed in range(count)]

    async def call(self, noise: random.Random) -> None:
        while not self.stop.is_set():
            output = noise.randrange(1, 100)
            admission = self.node.admission(self.principal, output)
            reply = await self.client.admit(admission)
            if isinstance(reply, Refused):
                assert (reply.code, reply.retry_after_ms) in {("ledger_unavailable", 1000), ("overloaded", 1000)}
                await asyncio.sleep(0.02)
                continue
            assert isinstance(reply, Granted)
            self.costs[reply.request_id] = used = noise.randrange(output + 1)
            done = None
            while done is None:
                try:
                    done = await self.client.settle(settlement(reply.request_id, used))
                except LedgerUnavailable:  # what a client of the gateway sees as an error; it is still owed
                    continue
            assert done.cost == used

    async def progress(self, count: int) -> None:
        enough = len(self.costs) + count

        async def more() -> bool:
            return len(self.costs) >= enough

        await until(more, within=60.0)

    async def end(self) -> int:
        """Let them finish; returns what it must have cost."""
        self.stop.set()
        await asyncio.gather(*self.tasks)
        return sum(self.costs.values())


async def test_two_nodes_admit_exactly_what_a_shared_budget_pays(new_node: Callable[..., Node]) -> None:
    a, b = new_node("a", seed=1), new_node("b", seed=2)
    async with a.serving(), b.serving(), a.client() as one, b.client() as two:
        made, principal = await a.key(one, "0.000000200/total")
        assert await two.authenticate(made.key) == principal
        replies = await asyncio.gather(
            *((one, two)[n % 2].admit((a, b)[n % 2].admission(principal, 10)) for n in range(64))
        )
        granted = [(n % 2, reply) for n, reply in enumerate(replies) if isinstance(reply, Granted)]
        assert len(granted) == 20
        assert {reply.code for reply in replies if isinstance(reply, Refused)} == {"budget_in_flight"}
        done = await asyncio.gather(
            *((one, two)[node].settle(settlement(reply.request_id, 10)) for node, reply in granted)
        )
        assert sum(each.cost for each in done) == 200
        refused = await two.admit(b.admission(principal, 1))
        assert isinstance(refused, Refused)
        assert refused.code == "budget_exhausted"


async def test_a_revoke_on_one_node_is_known_on_the_other(new_node: Callable[..., Node]) -> None:
    a, b = new_node("a", seed=1), new_node("b", seed=2)
    async with a.serving(), b.serving(), a.client() as one, b.client() as two:
        made, principal = await a.key(one, None)
        assert await two.authenticate(made.key) == principal
        await one.command(RevokeKey(id=made.id))
        refused = await two.admit(b.admission(principal, 1))  # what is priced is decided in the database
        assert isinstance(refused, Refused)
        assert refused.code == "invalid_api_key"

        async def forgotten() -> bool:
            return isinstance(await two.authenticate(made.key), Refused)

        await until(forgotten)


async def test_what_another_node_changed_is_not_forgotten_when_the_database_fails(
    new_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "FOLLOW_EVERY_S", 3600.0)
    a, b = new_node("a", seed=1), new_node("b", seed=2)
    async with a.serving(), b.serving() as server, a.client() as one, b.client() as two:
        made, principal = await a.key(one, None)
        assert await two.authenticate(made.key) == principal
        await one.command(RevokeKey(id=made.id))
        await one.command(SetPrice(model="m", rates={"output": "0.002"}))

        def gone() -> Any:
            raise StoreFailed("the database is gone")

        with monkeypatch.context() as broken, pytest.raises(StoreFailed):
            broken.setattr(server._node.keeper, "prices", gone)
            await server._follow()
        await server._follow()

        async def followed() -> bool:
            price = two.price_of(principal, "m")
            return price is not None and price.rates["output"].nano == 2_000_000

        await until(followed)
        assert isinstance(await two.authenticate(made.key), Refused)


async def test_what_one_node_changes_is_told_to_the_workers_of_the_other(new_node: Callable[..., Node]) -> None:
    a, b = new_node("a", seed=1), new_node("b", seed=2)
    async with a.serving(), b.serving(), a.client() as one, b.client() as two:
        secret = "hg_" + "a" * 30
        assert isinstance(await two.authenticate(secret), Refused)
        made, principal = await a.key(one, None)
        assert not principal.budgeted

        async def known() -> Any:
            found = await two.authenticate(made.key)
            return found if isinstance(found, Principal) else None

        assert await until(known) == principal

        async def priced() -> bool:
            price = two.price_of(principal, "m")
            return price is not None and price.rates["output"].nano == 1_000_000

        await until(priced)
        await one.command(SetBudget(account=made.id, amount="1", window="total"))

        async def budgeted() -> bool:
            found = await two.authenticate(made.key)
            assert isinstance(found, Principal)
            return found.budgeted

        await until(budgeted)


async def test_the_ledger_is_killed_under_load_and_nothing_is_lost_or_doubled(
    new_node: Callable[..., Node],
) -> None:
    node = new_node()
    node.start()
    async with node.client() as client:
        made, principal = await node.key(client, "1/total")
        callers = Callers(node, client, principal)
        for _ in range(2):
            await callers.progress(50)
            node.kill()
            node.start()
        await callers.progress(50)
        total = await callers.end()
        found = await budget(client, made.id)
        assert (found.spent, found.held) == (total, 0)


async def test_the_database_is_killed_under_load_and_nothing_is_lost_or_doubled(
    server: Any, new_node: Callable[..., Node]
) -> None:
    nodes = [new_node(name, seed=seed) for seed, name in enumerate("ab")]
    for node in nodes:
        node.start()
    async with nodes[0].client() as one, nodes[1].client() as two:
        made, principal = await nodes[0].key(one, "1/total")
        load = [Callers(nodes[0], one, principal), Callers(nodes[1], two, principal)]
        for callers in load:
            await callers.progress(50)
        await asyncio.to_thread(server.kill)
        for node, client in zip(nodes, (one, two), strict=True):
            refused = await client.admit(node.admission(principal, 1))
            assert isinstance(refused, Refused)
            assert (refused.code, refused.retry_after_ms) == ("ledger_unavailable", 1000)
        await asyncio.to_thread(server.start_again)
        total = 0
        for node, callers in zip(nodes, load, strict=True):
            if node.ledger is not None and node.ledger.poll() is not None:  # a COMMIT that nobody could ask about
                node.start()  # what the supervisor does
            await callers.progress(50)
            total += await callers.end()
        found = await budget(one, made.id)
        assert (found.spent, found.held) == (total, 0)


async def test_who_waits_for_a_dead_database_waits_no_longer_than_was_said(
    server: Any, new_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headgate_gateway.ledger.line.SETTLE_WAIT_S", 1.5)
    node = new_node()
    async with node.serving(), node.client() as client:
        made, principal = await node.key(client, "1/total")
        admissions = [node.admission(principal, 5) for _ in range(16)]
        for admission in admissions:
            assert isinstance(await client.admit(admission), Granted)
        with server.dead():
            async with asyncio.timeout(10):
                told = await asyncio.gather(
                    *(client.settle(settlement(one.request_id, 3)) for one in admissions), return_exceptions=True
                )
            assert {type(one) for one in told} == {LedgerUnavailable}

        async def recorded() -> bool:
            found = await budget(client, made.id)
            return (found.spent, found.held) == (3 * len(admissions), 0)

        await until(recorded)


async def test_a_silent_database_holds_up_nobody_but_who_must_wait(
    proxied: tuple[Any, str], new_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, url = proxied
    monkeypatch.setattr(served, "SILENT_S", 0.3)
    node = new_node(url=url)
    async with node.serving(), node.client() as client:
        made, principal = await node.key(client, "1/total")
        granted = await client.admit(node.admission(principal, 10))
        assert isinstance(granted, Granted)
        proxy.flowing.clear()
        settling = asyncio.create_task(client.settle(settlement(granted.request_id, 7)))
        assert await client.authenticate(made.key) == principal  # known here
        unknown = await client.authenticate("hg_" + "b" * 30)
        assert isinstance(unknown, Refused)
        refused = await client.admit(node.admission(principal, 1, deadline_ms=50))
        assert isinstance(refused, Refused)
        assert refused.code in {"ledger_unavailable", "overloaded"}
        assert refused.retry_after_ms is not None
        async with node.client(worker=1) as other:  # who comes now is welcome
            assert other.connected
        proxy.flowing.set()
        assert (await settling).cost == 7

        async def admitted() -> bool:
            return isinstance(await client.admit(node.admission(principal, 1)), Granted)

        await until(admitted)


async def test_a_stop_does_not_wait_for_a_silent_database(
    proxied: tuple[Any, str], new_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, url = proxied
    monkeypatch.setattr(served, "CLOSE_S", 0.1)
    node = new_node(url=url)
    async with node.serving():
        async with node.client() as client:
            made, principal = await node.key(client, "1/total")
            granted = await client.admit(node.admission(principal, 10))
            assert isinstance(granted, Granted)
            proxy.flowing.clear()
            settling = asyncio.create_task(client.settle(settlement(granted.request_id, 7)))
            await asyncio.sleep(0)  # it is in the flight file now, and that is all that is left of it
        with pytest.raises(asyncio.CancelledError):
            await settling
    proxy.flowing.set()
    async with node.serving(), node.client() as client:
        found = await budget(client, made.id)
        assert (found.spent, found.held) == (7, 0)


async def test_what_a_killed_node_had_in_flight_ends_as_its_flight_file_says(
    new_node: Callable[..., Node],
) -> None:
    node = new_node()
    node.start()
    async with node.client() as client:
        made, principal = await node.key(client, "1/total")
        for delivered in (None, 0, 42):
            granted = await client.admit(node.admission(principal, 100))
            assert isinstance(granted, Granted)
            if delivered is not None:
                client.dispatched(granted.request_id)
                client.delivered(granted.request_id, Usage(output=delivered))
        node.kill()
    node.start()
    async with node.client() as client:
        found = await budget(client, made.id)
        assert (found.spent, found.held) == (42, 0)
    with psycopg.connect(node.settings.store.url) as db:
        records = db.execute("SELECT outcome, cost FROM usage_records ORDER BY cost").fetchall()
        assert records == [("gateway_crash", 0), ("gateway_crash", 42)]
        assert db.execute("SELECT count(*) FROM voids").fetchone() == (1,)


async def test_a_node_that_was_given_up_ends_and_comes_back(new_node: Callable[..., Node], url: str) -> None:
    node = new_node()
    node.start()
    async with node.client() as client:
        _, principal = await node.key(client, "1/total")
        with psycopg.connect(url, autocommit=True) as db:
            db.execute("UPDATE nodes SET epoch = epoch + 1, lost = true")
        refused = await client.admit(node.admission(principal, 1, deadline_ms=50))
        assert isinstance(refused, Refused)
        assert node.ledger is not None
        assert await asyncio.to_thread(node.ledger.wait, 20) == 4
        node.start()  # what the supervisor does

        async def admitted() -> bool:
            return isinstance(await client.admit(node.admission(principal, 1)), Granted)

        await until(admitted)


async def test_holds_that_a_reconnecting_worker_does_not_declare_are_given_back(
    new_node: Callable[..., Node],
) -> None:
    node = new_node()
    node.start()
    async with node.client() as client:
        made, principal = await node.key(client, "1/total")
        kept = await client.admit(node.admission(principal, 10))
        lost = await client.admit(node.admission(principal, 20))
        assert isinstance(kept, Granted)
        assert isinstance(lost, Granted)
        client._slots.pop(lost.request_id)
        node.kill()
        node.start()

        async def given_back() -> bool:
            return (await budget(client, made.id)).held == 10

        await until(given_back)
        assert (await client.settle(settlement(kept.request_id, 3))).cost == 3


async def test_commands_without_a_gateway(new_node: Callable[..., Node]) -> None:
    node = new_node()
    async with momentary_ledger(node.settings, node.layout) as admin:
        made, _ = await node.key(admin, "1/total")
    async with momentary_ledger(node.settings, node.layout) as admin:
        assert (await budget(admin, made.id)).limit == 1_000_000_000


async def test_a_config_whose_price_is_not_the_stores_is_refused(new_node: Callable[..., Node]) -> None:
    nodes = [new_node(name, seed=seed) for seed, name in enumerate("ab")]

    def priced(node: Node, **prices: str) -> Settings:
        models = [Model(id=id_, task="chat", price=Price(output=price)) for id_, price in prices.items()]
        return node.settings.model_copy(update={"models": tuple(models)})

    async with nodes[0].serving(), nodes[1].serving():
        assert len((await sync_prices(priced(nodes[0], m="1"))).versions) == 1
        assert (await sync_prices(priced(nodes[1], m="1"))).versions == ()
        with pytest.raises(ValueError, match=r"price of 'm' .* `headgate prices apply`"):
            await sync_prices(priced(nodes[1], new="3", m="2"))
        assert [v.model for v in (await sync_prices(priced(nodes[1], new="3", m="1"))).versions] == ["new"]


async def test_a_database_that_was_not_migrated_is_refused(server: Any, tmp_path: Path) -> None:
    node = Node(tmp_path / "node", server.url("postgres"))
    with pytest.raises(StoreFailed, match="headgate migrate"):
        async with node.serving():
            raise AssertionError


async def test_missed_days_are_sealed_once_by_nodes_that_start_together(
    new_node: Callable[..., Node], new_postgres_bench: Callable[..., Any], url: str
) -> None:
    before = new_postgres_bench("before")  # its clock stands some days ago
    before.price()
    key = before.key("1/total")
    for _ in range(3):
        before.settle(before.admit(key).request_id, 7)
    nodes = [new_node(name) for name in ("one", "two")]
    for node in nodes:
        node.start()

    async def sealed() -> bool:
        return bool(before.audit(full=False).began.startswith("seal 1 of "))

    await until(sealed)
    with psycopg.connect(url) as db:
        assert db.execute("SELECT count(DISTINCT seal), count(DISTINCT chain) FROM seals").fetchone() == (1, 1)
    full, quick = before.audit(full=True), before.audit(full=False)
    assert full.ok, full.first_difference
    assert (full.checked["agreeing seals"], quick.ok, quick.checked.get("usage_records", 0)) == (1, True, 0)

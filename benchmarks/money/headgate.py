"""Headgate under test: one node on SQLite, or nodes that share a PostgreSQL database, and their operator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped,unused-ignore]
from headgate_gateway.admin.commands import CreateKey, GrantCredit, KeyCreated, Rejected, SetBudget
from headgate_gateway.admin.usage import PAGE, usage_reader
from headgate_gateway.ledger.embedded import momentary_ledger
from headgate_plugin_api import UsageRecord

from benchmarks.money import plan
from benchmarks.money.compare import Record, Version, Window
from benchmarks.money.node import Node
from benchmarks.money.subject import Victim, kill_all, named, wait_for
from benchmarks.postgres_server import Server

MODULES: Final[dict[Victim, str]] = {
    "worker": "headgate_gateway.worker",
    "ledger": "headgate_gateway.ledger",
    "engine": "headgate_engine",
}
SETTLE_S: Final = 40.0
ORDER_S: Final = 30.0
"""How long the operator tries to get an order through."""

FROZEN_S: Final = 6.0
"""Longer than a database's sessions wait for a lock or for a silent client."""

AHEAD_US: Final = 1_000_000
"""New prices are ordered so long before they are in force."""

OVERLAP_S: Final = 120
"""How long a rotated key goes on: longer than any client holds on to one."""

MODEL: Final = """
[[models]]
id = "{model}"
task = "{task}"
timeout_s = 3
price = {price}
"""

OURS: Final = """backend = "echo"
options = { delay_ms = 4, dimensions = 8 }
"""

TARGET: Final = """
[[models.targets]]
backend = "openai"
model = "truth"
base_url = "{address}/v1"
priority = {priority}
"""

POLICIES: Final = {plan.DRAINED: "drain", plan.WAIVED: "waive"}
DEAD: Final = "http://127.0.0.1:9"
"""Nobody listens on the port of `discard`."""


class Headgate:
    """See `Subject`.

    Args:
        folder: Where the nodes' folders go.
        upstream: Address of the truthful upstream.
        workers: Worker processes of each node.
        draw: Chooses who is killed, and prices.
        nodes: How many nodes; more than one need a database.
        database: A PostgreSQL server to make the store on; without it, SQLite.
    """

    near = True
    audits = True
    payers: tuple[plan.Payer, ...] = plan.PAYERS
    tight = plan.TIGHT

    def __init__(
        self,
        folder: Path,
        upstream: str,
        *,
        workers: int = 2,
        draw: random.Random,
        nodes: int = 1,
        database: Server | None = None,
    ) -> None:
        self.workers = workers
        self.name = "headgate, SQLite" if database is None else f"PostgreSQL, {nodes} node{'s' * (nodes > 1)}"
        self._draw = draw
        self._database = database
        self._url = None if database is None else database.database()
        pepper = folder / "pepper"
        pepper.write_text("pepper of a run that kills")
        server = f'workers = {workers}\ndrain_s = 5\npepper = "file:{pepper.absolute()}"\n'
        store = "" if self._url is None else f'[store]\nurl = "{self._url}"\n'
        rest = store + "".join(_model(model, upstream) for model in plan.PRICES)
        self.nodes = [Node(folder / f"node{number}", server, rest) for number in range(nodes)]
        self.urls = [node.url for node in self.nodes]
        self.keys: list[str] = []
        self._ids: list[str] = []
        self._projects: list[str] = []
        self._ordered: dict[tuple[str, int], plan.Price] = {}
        asyncio.run(self._make_accounts())

    async def _make_accounts(self) -> None:
        settings = self.nodes[0].settings
        async with momentary_ledger(settings, settings.layout) as admin:
            for payer in self.payers:
                made = await admin.command(
                    CreateKey(
                        project=payer.project,
                        budget=payer.budget,
                        rpm=payer.rpm,
                        tpm=payer.tpm,
                        concurrency=payer.concurrency,
                    )
                )
                assert isinstance(made, KeyCreated), made
                self.keys.append(made.key)
                self._ids.append(made.id)
                self._projects.append(made.project)
            orders: list[SetBudget | GrantCredit] = [
                SetBudget(account=account, amount=amount, window=window)  # type: ignore[arg-type]
                for account, (amount, window) in plan.BUDGETS.items()
            ]
            orders += [
                GrantCredit(account=account, amount=amount, priority=priority)
                for account, grants in plan.GRANTS.items()
                for amount, priority in grants
            ]
            for order in orders:
                done = await admin.command(order)
                assert not isinstance(done, Rejected), done

    # -- processes

    def start(self) -> None:
        """See `Subject`."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until all of it serves."""
        for node in self.nodes:
            node.wait()

    def launch(self, **environment: str) -> None:
        """Start it and do not wait; `environment` is added to that of the first node."""
        for number, node in enumerate(self.nodes):
            node.launch(**({} if number else environment))

    def kill(self, victim: Victim) -> bool:
        """See `Subject`."""
        node = self._draw.choice(self.nodes)
        orders: dict[Victim, Callable[[Node], bool]] = {
            "group": self._kill_group,
            "node": self._kill_node,
            "database": self._kill_database,
            "freeze": self._freeze,
            "reload": Node.reload,
            "restart": self._restart,
            "reprice": self._reprice,
            "rotate": self._rotate,
        }
        if victim in orders:
            return orders[victim](node)
        found = named(node.processes(), MODULES[victim])
        kill_all(found and [self._draw.choice(found)])
        return bool(found)

    def _kill_group(self, _node: Node) -> bool:
        self.kill_everything()
        self.start()
        return True

    def _kill_node(self, node: Node) -> bool:
        if len(self.nodes) == 1:
            return False
        node.kill()
        node.launch()
        node.wait()
        return True

    def _kill_database(self, _node: Node) -> bool:
        if self._database is None:
            return False
        self._database.kill()
        self._database.start_again()
        return True

    def _freeze(self, node: Node) -> bool:
        ledgers = named(node.processes(), MODULES["ledger"])
        for ledger in ledgers:
            ledger.suspend()
        time.sleep(FROZEN_S)
        for ledger in ledgers:
            with contextlib.suppress(psutil.NoSuchProcess):
                ledger.resume()
        return bool(ledgers)

    def _restart(self, node: Node) -> bool:
        node.stop()
        node.launch()
        node.wait()
        return True

    def stop(self) -> None:
        """See `Subject`."""
        for node in self.nodes:
            node.stop()

    def kill_everything(self) -> None:
        """`kill -9` of all nodes, without a new start."""
        for node in self.nodes:
            node.kill()

    def log(self) -> str:
        """What the first node said so far."""
        return self.nodes[0].log()

    def deaths(self) -> list[str]:
        """Children of the first node that were killed so far."""
        return self.nodes[0].deaths()

    # -- the operator's orders, in the middle of it all

    def _reprice(self, node: Node) -> bool:
        model, price = plan.repriced(self._draw)
        ahead, until = AHEAD_US, time.monotonic() + ORDER_S
        while time.monotonic() < until:
            moment = time.time_ns() // 1000 + ahead
            self._ordered[model, moment] = price
            # Whether an order without an answer was carried out is seen in the history. One that was held up
            # until its moment had passed is refused.
            with contextlib.suppress(RuntimeError):
                if node.order("prices", model=model, rates=price.quote(), effective_from=moment) is not None:
                    return True
            ahead *= 2
            time.sleep(0.2)
        return False

    def _rotate(self, node: Node) -> bool:
        account = self._draw.choice([n for n, payer in enumerate(self.payers) if payer.rotated])
        until = time.monotonic() + ORDER_S
        while time.monotonic() < until:
            made = node.order(f"keys/{self._ids[account]}/rotate", overlap_s=OVERLAP_S)
            if made is not None:
                self.keys[account], self._ids[account] = made["key"], made["id"]
                return True
            time.sleep(0.2)
        return False

    # -- what it says afterwards

    def settle(self) -> None:
        """See `Subject`. What stays held is found by `windows`."""
        try:
            wait_for(lambda: not any(a["in_flight"] for a in self._accounts()), "the end of it all", SETTLE_S)
        except TimeoutError:
            return

    def _accounts(self) -> list[dict[str, Any]]:
        accounts: list[dict[str, Any]] = self.nodes[0].command("accounts", "list")["accounts"]
        return accounts

    def windows(self) -> Sequence[Window]:
        """See `Subject`. All prepaid credit of an account is one budget."""
        found = []
        for account in self._accounts():
            if account["kind"] == "key":
                paying = {number for number, id_ in enumerate(self._ids) if id_ == account["id"]}
            elif account["kind"] == "project":
                paying = {number for number, id_ in enumerate(self._projects) if id_ == account["id"]}
            else:
                paying = set(range(len(self.keys)))
            for kind in {budget["window"] for budget in account["budgets"]}:
                budgets = [budget for budget in account["budgets"] if budget["window"] == kind]
                limit, spent, held = (sum(_nano(b[name]) for b in budgets) for name in ("limit", "spent", "held"))
                name = f"{account['kind']} {account['name'] or account['id']}, {kind}"
                found.append(Window(name, limit, spent, held, frozenset(paying)))
        return found

    def versions(self) -> Mapping[str, Version]:
        """See `Subject`. Terms are those that were ordered, whatever the gateway says that they are."""
        listed = self.nodes[0].command("prices", "list", "--history")["prices"]
        found = {}
        for one in listed:
            model, begins = one["model"], _microseconds(one["effective_at"])
            price = plan.PRICES[model] if one["source"] == "config" else self._ordered[model, begins]
            found[one["id"]] = Version(model, begins, price)
        return found

    def records(self) -> Sequence[Record]:
        """See `Subject`."""
        return asyncio.run(self._records())

    async def _records(self) -> list[Record]:
        reader, found = usage_reader(self.nodes[0].settings), []
        after: int | None = 0
        while after is not None:
            page = await reader.records(after, PAGE)
            found += [_record(record) for record in page.records]
            after = page.after
        return found

    def audit(self) -> str | None:
        """See `Subject`. Each node knows the heads of its own chains."""
        for node in self.nodes:
            report = node.command("audit", "--full")
            if not report["ok"]:
                return str(report["first_difference"])
        return None


def _model(model: str, upstream: str) -> str:
    text = MODEL.format(model=model, task=plan.TASKS.get(model, "chat"), price=_toml(plan.PRICES[model].quote()))
    if not model.startswith(plan.FAR):
        return text + OURS
    text += f'disconnect = "{POLICIES.get(model, "delivered")}"\n'
    targets = [DEAD, upstream] if model == plan.SECOND else [upstream]
    return text + "".join(TARGET.format(address=to, priority=number) for number, to in enumerate(targets))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _record(record: UsageRecord) -> Record:
    return Record(
        request_id=record.request_id,
        operation=record.tags.get("op", ""),
        outcome=record.outcome,
        input=record.usage.prompt_tokens,
        output=record.usage.completion_tokens,
        cost=record.cost,
        billed=record.billed,
        held=record.held,
        price=record.price,
        admitted_at=record.admitted_at,
        finished_at=record.finished_at,
    )


def _microseconds(moment: str) -> int:
    return (datetime.fromisoformat(moment) - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


def _nano(amount: str) -> int:
    return int(Decimal(amount) * 10**9)

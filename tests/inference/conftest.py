"""Inference with the real ledger: its server, its socket, its SQLite file. Only the models are scripted."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.admission import Claim, Principal, Refused
from headgate_gateway.domain.commands import CreateKey, KeyCreated, SyncPrices
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.inference import Call, Exchange, Inference
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.ledger.process import locked, serving
from headgate_gateway.ledger.store.recent import Present
from headgate_gateway.routing import Router
from headgate_gateway.settings import Model, Server, Settings
from headgate_plugin_api import (
    ChatPayload,
    EmbedPayload,
    Event,
    Finished,
    InferenceRequest,
    Message,
    TextDelta,
    Usage,
    UsageReport,
)

PRICE = {"input": "1", "output": "10"}
"""1 and 10 per million: 1,000 and 10,000 nano-units a token."""

INPUT, OUTPUT = 1_000, 10_000


class Scripted:
    """A target that plays what a test wrote: events to give, errors to raise, callables to await.

    With `at_once` it gives a whole answer in one piece, as remote targets do.
    """

    def __init__(
        self, *script: Any, name: str = "a", local: bool = False, priority: int = 0, at_once: bool = False
    ) -> None:
        self.script = list(script)
        self.name = name
        self.backend = "scripted"
        self.local = local
        self.priority = priority
        self.weight = 1
        self.asked: list[InferenceRequest] = []
        self.closed = 0
        self.own_bound: Usage | None = None
        self.answer = self._answer if at_once else None

    async def _answer(self, request: InferenceRequest) -> list[Event]:
        return [event async for event in self.run(request)]

    async def run(self, request: InferenceRequest) -> AsyncIterator[Event]:
        self.asked.append(request)
        try:
            for step in self.script:
                if isinstance(step, BaseException):
                    raise step
                if callable(step):
                    await step()
                else:
                    await asyncio.sleep(0)
                    yield step
        finally:
            self.closed += 1


class Served:
    """A configured model over scripted targets."""

    state = "ready"
    reason = ""
    info = None

    def __init__(self, settings: Model, targets: list[Scripted]) -> None:
        self.settings = settings
        self.targets = targets
        self.own: Usage | None = None

    def bound(self, request: InferenceRequest) -> Usage | None:
        return self.own


class World:
    """A worker's insides."""

    def __init__(self, layout: Layout, ledger: LedgerClient) -> None:
        self.layout = layout
        self.ledger = ledger
        self.clock = SystemClock()
        self.models: dict[str, Served] = {}
        self.ids = IdSource(self.clock, Random(7))
        self.router = Router(self.clock.monotonic, Random(3), failures=3, cooldown_s=60.0)
        self.inference = Inference(
            ledger=ledger, registry=self, router=self.router, clock=self.clock, ids=self.ids
        )
        self.principal = Principal(key_id="", project_id="", organization_id="")

    def find(self, model_id: str) -> Served | None:
        return self.models.get(model_id)

    def serve(self, *targets: Scripted, task: str = "chat", **settings: Any) -> Served:
        served = Served(Model(id="m", task=task, **settings), list(targets))
        self.models["m"] = served
        return served

    async def key(self, **fields: Any) -> Principal:
        """Make a key, and speak for it from now on."""
        created = await self.ledger.command(CreateKey(project="p", **fields))
        assert isinstance(created, KeyCreated), created
        principal = await self.ledger.authenticate(created.key)
        assert not isinstance(principal, Refused)
        self.principal = principal
        return principal

    def call(
        self,
        text: str = "to be or not to be",
        *,
        stream: bool = True,
        max_output: int | None = None,
        claim: Claim | None = None,
        task: str = "chat",
        n: int = 1,
    ) -> Call:
        payload: Any = ChatPayload(messages=(Message(role="user", content=text),), n=n)
        if task == "embed":
            payload = EmbedPayload(inputs=(text,))
        request = InferenceRequest(id="", model="m", payload=payload, stream=stream, max_output=max_output)
        return Call(principal=self.principal, request=request, claim=claim)

    async def run(self, call: Call, **how: Any) -> tuple[list[Event], Any]:
        """What a handler does, to the end."""
        exchange = await self.inference.begin(call)
        assert isinstance(exchange, Exchange)
        try:
            events = [event async for event in exchange.events()]
            return events, await exchange.settle(**how)
        finally:
            await exchange.abandon()

    def rows(self, query: str) -> list[dict[str, Any]]:
        with sqlite3.connect(f"file:{self.layout.store}?mode=ro", uri=True) as store:
            store.row_factory = sqlite3.Row
            found = [dict(row) for row in store.execute(query)]
        store.close()
        return found

    def record(self) -> dict[str, Any]:
        """The newest usage record."""
        return self.rows("SELECT * FROM usage_records ORDER BY seq DESC LIMIT 1")[0]

    async def settled(self) -> None:
        """Wait until no task of the worker is left."""
        await until(lambda: not self.inference.in_flight and not self.inference.busy)

    async def voided(self) -> None:
        """Wait until the ledger has answered everything: a void that nobody waits for may be on its way."""
        await until(lambda: not self.ledger._line.unanswered)

    def assert_nothing_held(self) -> None:
        """No hold is open, in no window anything is held, and what was spent is what the records say."""
        with contextlib.closing(sqlite3.connect(f"file:{self.layout.store}?mode=ro", uri=True)) as store:
            store.execute("BEGIN")
            present = Present(store)
            assert present.holds() == []
            windows = [(row[8], row[9]) for row in present.windows(0)]
            (cost,) = store.execute("SELECT COALESCE(SUM(cost), 0) FROM usage_records").fetchone()
        assert not self.ledger._slots
        assert sum(held for _, held in windows) == 0
        if windows:
            assert sum(spent for spent, _ in windows) == cost


def words(*texts: str, tokens: int | None = 1, usage: Usage | None = None, finish: str = "stop") -> list[Event]:
    """The events of an ordinary answer."""
    events: list[Event] = [TextDelta(text=text, tokens=tokens) for text in texts]
    events.append(Finished(reason=finish))  # type: ignore[arg-type]
    if usage is not None:
        events.append(UsageReport(usage=usage, source="upstream"))
    return events


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def forever() -> Awaitable[bool]:
    return asyncio.Event().wait()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = Settings(server=Server(data_dir=tmp_path / "data", pepper="pepper-of-the-tests"))
    with tempfile.TemporaryDirectory(prefix="hg-") as run_dir:
        layout = Layout(tmp_path / "data", Path(run_dir))
        with locked(layout):
            async with serving(settings, layout):
                ledger = LedgerClient(layout, worker=0, clock=SystemClock())
                await ledger.start()
                await ledger.command(SyncPrices(models={"m": PRICE}))
                world = World(layout, ledger)
                await world.key(budget="1000/total")
                yield world
                await world.inference.close()
                await ledger.close()

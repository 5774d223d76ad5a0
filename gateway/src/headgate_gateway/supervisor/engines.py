"""The engines of the configured local models: started, waited for, ended, and loaded or unloaded by name.

May import child, children, engine_watch, status, layout, models.specs and models.control.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog
from headgate_engine.wire import State

from headgate_gateway.layout import Layout
from headgate_gateway.models.control import Told
from headgate_gateway.models.specs import engine_spec
from headgate_gateway.settings import Model
from headgate_gateway.supervisor.child import Child, stop_all
from headgate_gateway.supervisor.children import Children
from headgate_gateway.supervisor.engine_watch import EngineWatch
from headgate_gateway.supervisor.status import ChildStatus

LOAD_PATIENCE_S: Final = 900.0
"""How long a reload waits for new models to load before it moves the workers over."""

LOOK_EVERY_S: Final = 0.1
GRACE_S: Final = 5.0
HUNG_S: Final = 60.0
"""An engine may be silent or busy with one pass for so long, however short its model's `timeout_s` is."""

_log = structlog.get_logger()


@dataclass(eq=False)
class Engine:
    """One replica of a local model, and what it says of itself."""

    model: Model
    child: Child
    watch: EngineWatch

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.watch.state is not None and self.watch.state.state == "ready"

    @property
    def settled(self) -> bool:
        """Whether it is ready, has failed or was ended: waiting longer changes nothing."""
        state = self.watch.state
        told = state is not None and state.state in ("ready", "failed")
        return told or self.child.restarts > 0 or self.child.state == "stopped"

    def status(self) -> ChildStatus:
        """For the status file and the table."""
        heard = self.watch.state
        failure = self.watch.failure
        state = self.child.state if heard is None or self.child.state != "ready" else heard.state
        if state == "ready" and heard is None:
            state = "starting"
        if failure is not None and state != "stopped":
            state = "failed"  # it is tried again and again; until one try works, this is what people should see
        return ChildStatus(
            name=self.child.program.name,
            kind="engine",
            pid=self.child.pid,
            state=state,
            restarts=self.child.restarts,
            model=self.model.id,
            device=heard.info.device if heard and heard.info else self.model.device,
            detail=failure or _detail(heard),
            fraction=1.0 if state == "ready" else heard.fraction if heard else 0.0,
        )


def _detail(heard: State | None) -> str:
    """What is being done, or a line about the loaded model."""
    if heard is None:
        return ""
    return heard.info.detail if heard.info else heard.what


def same_engine(one: Model, other: Model) -> bool:
    """Whether a running engine of one model serves for the other: prices, limits and names may differ."""
    told = [(engine_spec(model), model.replicas, model.python) for model in (one, other)]
    return told[0] == told[1]


def unknown(name: str) -> Told:
    """The answer where no model has such a name, or has it no more: a reload may have come first."""
    return Told(code="unknown", message=f"the config has no model {name!r}")


class Engines:
    """Every engine of one supervisor. Each model has a slot, the number that its engines' sockets carry.

    Args:
        layout: Where their sockets and marks lie.
        children: Starts them.
        on_change: Called whenever one says something new.
        hurry: Set when whoever waits for an end waits no more.

    Attributes:
        running: Those that were started and not ended, in the order of their start.
        slots: By model.
        changing: Held by whoever changes which engines there are to be.
    """

    def __init__(
        self, layout: Layout, children: Children, on_change: Callable[[], None], hurry: asyncio.Event
    ) -> None:
        self.running: list[Engine] = []
        self.slots: dict[str, int] = {}
        self.changing = asyncio.Lock()
        self._layout = layout
        self._children = children
        self._on_change = on_change
        self._hurry = hurry
        self._next_slot = 0

    def number(self, models: Iterable[Model]) -> None:
        """Give every model without a slot one that was never used before."""
        for model in models:
            if model.id not in self.slots:
                self.slots[model.id] = self._next_slot
                self._next_slot += 1

    def start(self, models: Iterable[Model]) -> list[Engine]:
        """Start every replica of these models, of those that run here; returns them."""
        started: list[Engine] = []
        for model in models:
            if model.backend is None:
                continue
            slot = self.slots[model.id]
            for replica in range(model.replicas):
                child = self._children.start_engine(model, slot, replica)
                watch = EngineWatch(
                    self._layout.engine_socket(slot, replica),
                    self._on_change,
                    # Nobody waits longer for an answer than `timeout_s`, so nobody waits for such a pass.
                    most_s=max(model.timeout_s, HUNG_S),
                    on_hanging=child.replace,
                )
                watch.start()
                started.append(Engine(model, child, watch))
                self.running.append(started[-1])
        return started

    async def loaded(self, engines: Iterable[Engine]) -> None:
        """Wait until each is ready or has failed, within bounds."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + LOAD_PATIENCE_S
        while not all(engine.settled for engine in engines) and clock() < deadline:
            await asyncio.sleep(LOOK_EVERY_S)

    async def end(self, engines: Iterable[Engine]) -> None:
        """End these and forget them."""
        ending = list(engines)
        await self._stop(ending)
        self.running = [engine for engine in self.running if engine not in ending]

    async def close(self) -> None:
        """End all of them; how each ended is still told."""
        await self._stop(self.running)

    async def load(self, model: Model) -> Told:
        """Start what was unloaded, and wait until it answers or has failed."""
        async with self.changing:
            if model.id not in self.slots:
                return unknown(model.id)
            engines = self._of(model)
            if not engines:
                self._layout.engine_unloaded(self.slots[model.id]).unlink(missing_ok=True)
                engines = self.start([model])
                self._on_change()
        await self.loaded(engines)
        failures = [engine.watch.failure or "its engine ended" for engine in engines if not engine.ready]
        if failures:
            return Told(code="failed", message=f"{model.id}: {failures[0]}")
        _log.info("loaded", model=model.id)
        return Told(code="done", message=f"{model.id} is ready")

    async def unload(self, model: Model) -> Told:
        """End a model's engines, until it is loaded or the config is applied again."""
        async with self.changing:
            if model.id not in self.slots:
                return unknown(model.id)
            self._layout.engine_unloaded(self.slots[model.id]).touch()
            await self.end(self._of(model))
        self._on_change()
        _log.info("unloaded", model=model.id)
        return Told(code="done", message=f"{model.id} is unloaded")

    async def _stop(self, engines: list[Engine]) -> None:
        await stop_all([engine.child for engine in engines], GRACE_S, self._hurry)
        await asyncio.gather(*(engine.watch.stop() for engine in engines))

    def _of(self, model: Model) -> list[Engine]:
        return [engine for engine in self.running if engine.model.id == model.id]

"""The children of one supervisor: started with what they all share, engines with a watch beside them.

May import child, programs, engine_watch, status, models.specs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from headgate_engine.wire import State

from headgate_gateway.backoff import Backoff
from headgate_gateway.models.specs import engine_spec
from headgate_gateway.settings import Model
from headgate_gateway.supervisor.child import Child, WriteLine
from headgate_gateway.supervisor.engine_watch import EngineWatch
from headgate_gateway.supervisor.programs import Program, Programs
from headgate_gateway.supervisor.status import ChildStatus

HUNG_S: Final = 60.0
"""An engine may be silent or busy with one pass for so long, however short its model's `timeout_s` is."""


@dataclass
class Engine:
    """One replica of a local model, and what it says of itself."""

    model: Model
    slot: int
    replica: int
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
            state = (
                "failed"  # it is tried again and again, but until one try works this is what people should see
            )
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


class Children:
    """Starts children of every kind with what they all share."""

    def __init__(
        self,
        programs: Programs,
        write_line: WriteLine,
        random: Random,
        on_change: Callable[[], None],
    ) -> None:
        self._programs = programs
        self._write_line = write_line
        self._random = random
        self._on_change = on_change

    def start_ledger(self) -> Child:
        """The ledger."""
        return self._start(self._programs.ledger())

    def start_worker(self, number: int) -> Child:
        """One worker."""
        return self._start(self._programs.worker(number))

    def start_outbox(self) -> Child:
        """What hands usage records to plugins."""
        return self._start(self._programs.outbox())

    def start_engines(self, model: Model, slot: int) -> list[Engine]:
        """Every replica of a local model."""
        engines: list[Engine] = []
        for replica in range(model.replicas):
            child = self._start(self._programs.engine(model, slot, replica))
            watch = EngineWatch(
                self._programs.socket(slot, replica),
                self._on_change,
                # Nobody waits longer for an answer than `timeout_s`, so nobody waits for such a pass.
                most_s=max(model.timeout_s, HUNG_S),
                on_hanging=child.replace,
            )
            watch.start()
            engines.append(Engine(model, slot, replica, child, watch))
        return engines

    def _start(self, program: Program) -> Child:
        child = Child(
            program,
            backoff=Backoff(self._random),
            write_line=self._write_line,
            on_change=self._on_change,
        )
        child.start()
        return child


def same_engine(one: Model, other: Model) -> bool:
    """Whether a running engine of one model serves for the other: prices, limits and names may differ."""
    told = [(engine_spec(model), model.replicas, model.python) for model in (one, other)]
    return told[0] == told[1]

"""Starts the children of one supervisor with what they all share. May import child, programs and backoff."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from headgate_gateway.backoff import Backoff
from headgate_gateway.settings import Model
from headgate_gateway.supervisor.child import Child, WriteLine
from headgate_gateway.supervisor.programs import Program, Programs


class Children:
    """Starts children of every kind.

    Args:
        programs: Their command lines.
        write_line: Where their output goes.
        random: For the jitter of starting again.
        on_change: Called whenever the state of one changes.
    """

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

    def start_engine(self, model: Model, slot: int, replica: int) -> Child:
        """One replica of a local model."""
        return self._start(self._programs.engine(model, slot, replica))

    def _start(self, program: Program) -> Child:
        child = Child(
            program,
            backoff=Backoff(self._random),
            write_line=self._write_line,
            on_change=self._on_change,
        )
        child.start()
        return child

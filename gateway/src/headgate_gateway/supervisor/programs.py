"""The command lines of the children, and the files that they are given.

May import settings, layout, models.specs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from headgate_gateway.layout import Layout
from headgate_gateway.models.specs import engine_spec
from headgate_gateway.settings import Model
from headgate_gateway.supervisor.status import Kind

ENTRIES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "ledger": ("-m", "headgate_gateway.ledger"),
    "worker": ("-m", "headgate_gateway.worker"),
    "engine": ("-m", "headgate_engine"),
    "outbox": ("-m", "headgate_gateway.outbox"),
}
"""What Python runs for each kind of child."""


@dataclass(frozen=True)
class Program:
    """How a child is started. The pipes to its parent are added by `Child`.

    Attributes:
        announces: Whether it says by `--ready-fd` that it serves. Engines tell by their socket instead.
        raw: Whether its output is plain text of libraries, to be marked with its name, or already our log lines.
    """

    name: str
    kind: Kind
    argv: tuple[str, ...]
    inherited: tuple[int, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    announces: bool = True
    raw: bool = False


class Programs:
    """Makes the command lines of one deployment.

    Args:
        layout: Where sockets and files lie.
        entries: What Python runs; tests put in children of their own.

    Attributes:
        listen_fds: The bound sockets that all workers share: for clients, and for the admin API alone where that
            has an address of its own.
    """

    def __init__(self, layout: Layout, entries: Mapping[Kind, tuple[str, ...]] = ENTRIES) -> None:
        self.listen_fds: tuple[int, ...] = ()
        self._layout = layout
        self._entries = entries

    def ledger(self) -> Program:
        """The one writer of the store."""
        argv = (sys.executable, *self._entries["ledger"], "--settings", str(self._layout.settings))
        return Program("ledger", "ledger", argv)

    def worker(self, number: int) -> Program:
        """A worker; its number names its flight file and socket."""
        argv = (
            *(sys.executable, *self._entries["worker"], "--settings", str(self._layout.settings)),
            *("--listen-fd", *map(str, self.listen_fds), "--worker", str(number)),
        )
        return Program(f"worker {number}", "worker", argv, self.listen_fds, self._counting())

    def outbox(self) -> Program:
        """What hands usage records to plugins, which may print what they like."""
        argv = (sys.executable, *self._entries["outbox"], "--settings", str(self._layout.settings))
        return Program("outbox", "outbox", argv, environment=self._counting(), raw=True)

    def _counting(self) -> tuple[tuple[str, str], ...]:
        return (("PROMETHEUS_MULTIPROC_DIR", str(self._layout.metrics)),)

    def engine(self, model: Model, slot: int, replica: int) -> Program:
        """An engine; writes the spec that it loads."""
        spec_file = self._layout.engine_spec(slot, replica)
        spec_file.write_bytes(msgspec.json.encode(engine_spec(model)))
        argv = (
            *(str(model.python or sys.executable), *self._entries["engine"], "--spec", str(spec_file)),
            *("--socket", str(self._layout.engine_socket(slot, replica))),
        )
        return Program(f"{model.id}/{replica}", "engine", argv, announces=False, raw=True)

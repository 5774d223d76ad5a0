"""What the load needs of a gateway that it is pointed at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, Protocol

import psutil  # type: ignore[import-untyped,unused-ignore]

from benchmarks.money.compare import Record, Version, Window
from benchmarks.money.plan import Payer

Victim = Literal[
    "worker", "ledger", "engine", "node", "database", "group",
    "freeze", "reload", "restart", "reprice", "rotate", "nobody",
]  # fmt: skip

START_S: Final = 90.0


class Subject(Protocol):
    """A gateway under test, with the model FAR at the truthful upstream and, if it can, NEAR of its own."""

    name: str
    urls: list[str]
    """Addresses of its nodes."""

    keys: list[str]
    payers: tuple[Payer, ...]
    """Whose keys they are."""

    tight: int
    """How many of the keys, the last ones, have budgets that run out."""

    near: bool
    """Whether it runs models itself."""

    audits: bool
    """Whether it can check its own books."""

    def start(self) -> None:
        """Start it and wait until it serves; also after `kill`."""
        ...

    def kill(self, victim: Victim) -> bool:
        """`kill -9` one process of a kind, all of a node, the database's server, or everything at once, and start
        again what does not come back by itself; `freeze` holds a ledger up for seconds. `reload`, `restart`,
        `reprice` and `rotate` are what an operator does under load. False where there is no such thing.
        """
        ...

    def stop(self) -> None:
        """End it in its own way, or kill it when that takes too long."""
        ...

    def settle(self) -> None:
        """Wait until nothing is in flight any more, for a bounded time."""
        ...

    def records(self) -> Sequence[Record]:
        """Everything that it wrote down."""
        ...

    def windows(self) -> Sequence[Window]:
        """Its budgets."""
        ...

    def versions(self) -> Mapping[str, Version]:
        """Its price versions by id; none where it knows no such thing."""
        ...

    def audit(self) -> str | None:
        """What its own check of its books found first, None when all is well or it has no such check."""
        ...


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Poll until it is so.

    Raises:
        TimeoutError: It did not happen.
    """
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not happen in {timeout_s:g} s")
        time.sleep(0.02)


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def named(processes: Sequence[psutil.Process], part: str) -> list[psutil.Process]:
    """Those whose command line names `part`."""
    found = []
    for process in processes:
        try:
            if any(part in word for word in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """`kill -9` of each."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue

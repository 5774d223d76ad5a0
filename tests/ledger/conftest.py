"""A ledger without its socket, on a store in tmp_path, driven by a clock that stands still."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.domain import keys
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import sealing, wire
from headgate_gateway.ledger.audit import AuditReport, audit
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.core import Core, Speaker
from headgate_gateway.ledger.history import History, SqliteHistory
from headgate_gateway.ledger.store.read_only import open_readonly
from headgate_gateway.ledger.store.sqlite import SqliteStore

PEPPER = b"p" * 32
SECOND = 1_000_000
START = 1_795_000_000 * SECOND
NEVER = 2**62


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self, us: int = START) -> None:
        self.us = us

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / SECOND


class Bench:
    """A core on a real store, and the few words that tests drive it with."""

    def __init__(self, folder: Path, seed: int = 7) -> None:
        self.layout = Layout.of(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.layout.pepper.write_text(PEPPER.decode())
        self.clock = ManualClock()
        self.ids = IdSource(self.clock, random.Random(seed))
        self.speaker = Speaker(0, "life-1")
        self.core = self._open()
        self.n = 0

    def _open(self) -> Core:
        store = SqliteStore(self.layout.store, chain_key(PEPPER), self.layout.data_dir / "chain.head")
        return Core(store, self.clock, self.ids)

    def restart(self) -> None:
        """End the ledger and start it again."""
        self.core.close()
        self.core = self._open()

    def run(self, *ops: Any) -> list[Any]:
        """Run operations as one batch."""
        return self.core.run([(self.speaker, op) for op in ops])

    def do(self, command: Any) -> Any:
        """Carry a command out."""
        (reply,) = self.run(wire.Run(1, command, "test"))
        return reply.result

    def key(self, budget: str | None = None, *, project: str = "p", **more: Any) -> str:
        """Make a key; returns its id."""
        self.n += 1
        made = self.do(
            c.Create(
                id=self.ids.key(), digest=keys.digest(f"secret {self.n}", PEPPER), prefix="hg_", project=project,
                budget=budget, **more,
            )
        )  # fmt: skip
        assert isinstance(made, c.Created), made
        return made.id

    def price(self, model: str = "m", **rates: str) -> None:
        """Set a price; one nano-unit per output token where none is given."""
        assert isinstance(self.do(c.SetPrice(model=model, rates=rates or {"output": "0.001"})), c.PricesSet)

    def admit(self, key: str, most: int = 10, *, prompt: int = 0, least: int | None = None, **more: Any) -> Any:
        """Ask for admission; `least` is `most` unless given."""
        defaults: dict[str, Any] = {
            "request_id": self.ids.request(),
            "model": "m",
            "task": "chat",
            "stream": False,
        }
        op = wire.Admit(
            n=1, key_id=key, bound=(prompt, 0, 0, 0, 0, 0, 0, 0, 0), least=most if least is None else least,
            most=most, deadline_us=NEVER, **{**defaults, **more},
        )  # fmt: skip
        return self.run(op)[0]

    def settle(self, request_id: str, output: int = 0, *, prompt: int = 0, **more: Any) -> Any:
        """Settle with so many tokens."""
        defaults: dict[str, Any] = {"source": "upstream", "outcome": "ok", "backend": "echo"}
        return self.run(
            wire.Settle(1, request_id, (prompt, 0, 0, output, 0, 0, 0, 0, 0), **{**defaults, **more})
        )[0]

    def budgets(self, account: str) -> dict[str, c.BudgetInfo]:
        """Budgets of an account, by window."""
        page = self.do(c.ListAccounts(limit=1000))
        (found,) = [a for a in page.accounts if account in (a.id, a.name)]
        return {budget.kind: budget for budget in found.budgets}

    def audit(self, *, full: bool = True, archived: Path | None = None) -> AuditReport:
        """What the audit says now."""
        return audit(self.layout, full=full, archived=archived)

    @contextlib.contextmanager
    def history(self) -> Iterator[History]:
        """The store as an audit sees it."""
        with contextlib.closing(open_readonly(self.layout.store)) as db:
            yield SqliteHistory(db, chain_key(PEPPER), self.layout.data_dir / "chain.head")

    def seal(self) -> int:
        """Have the history sealed as it stands; returns in how many parts."""
        with self.history() as history:
            parts = sealing.make(history, chain_key(PEPPER))
        for part in parts:
            assert isinstance(self.do(part), c.Done)
        return len(parts)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data")
    yield bench
    report = bench.audit()
    assert report.ok, report.first_difference
    bench.core.close()


@pytest.fixture(scope="session")
def bench_class() -> type[Bench]:
    """For tests that make their own benches."""
    return Bench


@pytest.fixture
def new_bench(tmp_path: Path) -> Callable[[str], Bench]:
    """Benches that the fixture does not audit at the end."""
    return lambda name: Bench(tmp_path / name)

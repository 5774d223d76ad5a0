"""Meters and budgets: what calls used, added up per scope. Scopes are contextvars, so they follow asyncio tasks.

Nothing here does I/O. Imports the core's forks, money and prices, and wire types for their names.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from headgate._core.forks import inherited
from headgate._core.money import Cost, amount, format_nano
from headgate._core.prices import Upper
from headgate.errors import BudgetExceeded

if TYPE_CHECKING:
    from headgate.types.shared import Usage


@dataclass(slots=True)
class MeterRow:
    """What one model used under one set of tags.

    Attributes:
        requests: Answers that came, replays included.
        replays: Answers that were stored ones, free of charge.
        failures: Calls that raised.
        unpriced: Answers without a cost.
        nano: Their cost together.
    """

    model: str
    tags: Mapping[str, str]
    requests: int = 0
    replays: int = 0
    failures: int = 0
    unpriced: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    nano: int = 0

    @property
    def cost(self) -> Cost:
        """Their cost together."""
        return Cost(self.nano)


_COUNTS = (
    "requests", "replays", "failures", "unpriced", "prompt_tokens", "completion_tokens", "cached_tokens",
    "nano",
)  # fmt: skip


class Meter:
    """Adds up what the calls inside its `with` block used, per model and tags.

    It stays readable after the block, which follows asyncio tasks. A thread of yours joins with a block of its
    own: `with meter:`. Safe to use from many threads and tasks.
    """

    def __init__(self, tags: Mapping[str, str] | None = None) -> None:
        self.tags = dict(tags or {})
        self._rows: dict[tuple[str, tuple[tuple[str, str], ...]], MeterRow] = {}
        self._nano = self._tokens = 0
        self.forked()
        inherited(self)

    def forked(self) -> None:
        """A forked child goes on adding to its own copy."""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Put it around what runs in the block, tasks started there included."""
        _SCOPES.set((*_SCOPES.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away again."""
        # Not by a token: blocks inside generators end in any order, and in another context than they began in.
        scopes = list(_SCOPES.get())
        if self in scopes:
            scopes.remove(self)
        _SCOPES.set(tuple(scopes))

    def __repr__(self) -> str:
        """What it has by now."""
        return f"<{type(self).__name__}: {self.requests} requests, {self.cost}>"

    def book(
        self,
        model: str,
        tags: Mapping[str, str],
        *,
        usage: Usage | None,
        nano: int | None,
        replayed: bool = False,
        failed: bool = False,
        held: Upper | None = None,
    ) -> None:
        """Add one call; what was held for it goes at the same moment, so that no other finds room in between."""
        key = (model, tuple(sorted(tags.items())))
        with self._lock:
            if held is not None:
                self._free(held)
            row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = MeterRow(model, dict(tags))
            row.failures += failed
            row.requests += not failed
            row.replays += replayed
            row.unpriced += nano is None and not failed
            if replayed:
                return
            row.nano += nano or 0
            self._nano += nano or 0
            if usage is not None:
                self._tokens += usage.prompt_tokens + usage.completion_tokens
                row.prompt_tokens += usage.prompt_tokens
                row.completion_tokens += usage.completion_tokens
                row.cached_tokens += usage.cached_tokens

    def _free(self, held: Upper) -> None:
        """Give back what was held; a plain meter holds nothing."""

    @property
    def cost(self) -> Cost:
        """What all of it cost."""
        return Cost(self._nano)

    @property
    def requests(self) -> int:
        """How many answers came."""
        return sum(row.requests for row in self.rows())

    @property
    def total_tokens(self) -> int:
        """Tokens in and out."""
        return self._tokens

    def rows(self) -> list[MeterRow]:
        """A copy of the rows, ordered by model."""
        with self._lock:
            rows = [
                MeterRow(row.model, row.tags, *(getattr(row, name) for name in _COUNTS))
                for row in self._rows.values()
            ]
        return sorted(rows, key=lambda row: (row.model, sorted(row.tags.items())))

    def by_model(self) -> dict[str, Cost]:
        """Cost per model."""
        return self._grouped(lambda row: row.model)

    def by_tag(self, name: str) -> dict[str, Cost]:
        """Cost per value of a tag; `""` for calls without it."""
        return self._grouped(lambda row: row.tags.get(name, ""))

    def _grouped(self, group: Callable[[MeterRow], str]) -> dict[str, Cost]:
        sums: dict[str, int] = {}
        for row in self.rows():
            sums[group(row)] = sums.get(group(row), 0) + row.nano
        return {name: Cost(nano) for name, nano in sums.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; costs as decimal strings."""
        return {"cost": str(self.cost), "requests": self.requests, "rows": self.to_rows()}

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat mapping per row, for csv and tables."""
        return [
            {
                "model": row.model,
                **{name: getattr(row, name) for name in _COUNTS if name != "nano"},
                "cost": format_nano(row.nano),
                **{f"tag.{name}": value for name, value in row.tags.items()},
            }
            for row in self.rows()
        ]

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        pandas: Any = importlib.import_module("pandas")
        return pandas.DataFrame(self.to_rows())

    def to_opentelemetry(self, meter: Any) -> None:
        """Add the rows to counters of an OpenTelemetry `Meter`: `headgate.client.{requests,tokens,cost}`.

        Args:
            meter: `opentelemetry.metrics.get_meter(...)`.
        """
        requests = meter.create_counter("headgate.client.requests", "1")
        tokens = meter.create_counter("headgate.client.tokens", "{token}")
        nanos = meter.create_counter("headgate.client.cost", "n{currency}")
        for row in self.rows():
            labels = {"model": row.model, **row.tags}
            requests.add(row.requests, labels)
            tokens.add(row.prompt_tokens, {**labels, "direction": "input"})
            tokens.add(row.completion_tokens, {**labels, "direction": "output"})
            nanos.add(row.nano, labels)


class Budget(Meter):
    """A meter that says no: before sending, or by cutting a stream that would cross it.

    Args:
        max_cost: The most that the calls inside may cost together, a decimal string.
        max_tokens: The most tokens that they may use together.
        strict: Refuse models whose price is not known, instead of counting only what they cost afterwards.
        tags: As for a meter.
    """

    def __init__(
        self,
        max_cost: object = None,
        max_tokens: int | None = None,
        *,
        strict: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(tags)
        if max_cost is None and max_tokens is None:
            raise ValueError("a budget needs max_cost or max_tokens")
        self.max_nano = None if max_cost is None else amount(max_cost, "max_cost")
        self.max_tokens = max_tokens
        self.strict = strict
        self._held_nano = 0
        self._held_tokens = 0

    @property
    def remaining(self) -> Cost | None:
        """What is left of `max_cost`, calls in flight taken off."""
        if self.max_nano is None:
            return None
        with self._lock:
            return Cost(max(0, self.max_nano - self._nano - self._held_nano), settled=False)

    def reserve(self, most: Upper, model: str | None) -> None:
        """Hold the most that a call can use.

        Raises:
            BudgetExceeded: It does not fit.
        """
        if self.strict and self.max_nano is not None and most.nano is None:
            raise BudgetExceeded(f"the price of {model!r} is not known and the budget is strict")
        with self._lock:
            tokens = self._tokens
            self._check(self._nano + self._held_nano, most.nano or 0, self._nano)
            if self.max_tokens is not None and (
                tokens + self._held_tokens >= self.max_tokens
                or tokens + self._held_tokens + most.tokens > self.max_tokens
            ):
                raise BudgetExceeded(
                    f"a budget of {self.max_tokens} tokens has {self.max_tokens - tokens} left,"
                    f" this call may use {most.tokens}",
                    limit=self.max_tokens,
                    spent=tokens,
                    reserved=self._held_tokens,
                    needed=most.tokens,
                )
            self._held_nano += most.nano or 0
            self._held_tokens += most.tokens

    def _check(self, taken: int, needed: int, spent: int) -> None:
        if self.max_nano is None or (taken < self.max_nano and taken + needed <= self.max_nano):
            return
        left = format_nano(max(0, self.max_nano - taken))
        raise BudgetExceeded(
            f"a budget of {format_nano(self.max_nano)} has {left} left, this call may cost {format_nano(needed)}",
            limit=Cost(self.max_nano),
            spent=Cost(spent),
            reserved=Cost(taken - spent, settled=False),
            needed=Cost(needed, settled=False),
        )

    def release(self, most: Upper) -> None:
        """Give back what a call held that was not made."""
        with self._lock:
            self._free(most)

    def _free(self, held: Upper) -> None:
        self._held_nano -= held.nano or 0
        self._held_tokens -= held.tokens

    def crossed_by(self, most: Upper, nano: int, tokens: int) -> bool:
        """Whether a running stream that has used this much would cross the budget."""
        with self._lock:
            others = self._nano + self._held_nano - (most.nano or 0)
            tokens_of_others = self._tokens + self._held_tokens - most.tokens
        return (self.max_nano is not None and others + nano > self.max_nano) or (
            self.max_tokens is not None and tokens_of_others + tokens > self.max_tokens
        )


_SCOPES: ContextVar[tuple[Meter, ...]] = ContextVar("headgate_scopes", default=())


def current() -> tuple[Meter, ...]:
    """The meters and budgets around the caller, outermost first, each once."""
    scopes = _SCOPES.get()
    return scopes if len(scopes) < 2 else tuple(dict.fromkeys(scopes))

"""Which of a model's targets a request is sent to, and in which order the others follow.

Lower priorities first. Within one priority: a draw by weight between targets whose breaker is closed; of two
drawn the one with fewer requests in flight for its weight comes first, so that a slow target gets less without
anyone measuring it. Targets with an open breaker are left out; a half-open one is probed by a single request.
State is a worker's own: each worker learns for itself, and nothing here decides about money. Imports nothing of
ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from headgate_gateway.routing.breaker import Breaker, BreakerState


class Routable(Protocol):
    """What the router needs to know of a target."""

    @property
    def name(self) -> str:
        """Names it among the model's targets."""
        ...

    @property
    def backend(self) -> str:
        """The backend's name."""
        ...

    @property
    def priority(self) -> int:
        """Lower is tried first."""
        ...

    @property
    def weight(self) -> int:
        """Its share among targets of equal priority; 0 takes it out."""
        ...

    @property
    def local(self) -> bool:
        """Whether it runs in an engine of ours, whose health the engine's own state tells."""
        ...


R = TypeVar("R", bound=Routable)


class RouteStep(msgspec.Struct, frozen=True, kw_only=True):
    """One target as `headgate routes explain` shows it.

    Attributes:
        order: Place among the targets that would be tried, from 1; None for one that is left out.
        share: Part of the first tries that it gets, in parts per million, while all of its priority are idle.
        breaker: State of its circuit breaker.
        wait_ms: Milliseconds until an open breaker lets a probe through.
        why: Why it is left out, for people; empty when it is not.
    """

    target: str
    backend: str
    priority: int
    weight: int
    order: int | None
    share: int
    in_flight: int
    breaker: BreakerState
    failed: int
    wait_ms: int
    why: str = ""


class _Entry:
    __slots__ = ("breaker", "in_flight")

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.in_flight = 0


class Lease:
    """One request's place at a target. Ended once, by what happened; later calls change nothing."""

    __slots__ = ("_entry", "_now", "_open")

    def __init__(self, entry: _Entry, now: Callable[[], float]) -> None:
        self._entry = entry
        self._now = now
        self._open = True
        entry.in_flight += 1

    def succeeded(self) -> None:
        """The target is well; the request may still be running."""
        if self._open:
            self._entry.breaker.succeeded()

    def failed(self) -> None:
        """The target failed."""
        if self._end():
            self._entry.breaker.failed_at(self._now())

    def ended(self) -> None:
        """The request is over, without a word on the target's health beyond what was said before."""
        if self._end():
            self._entry.breaker.released()

    def _end(self) -> bool:
        if not self._open:
            return False
        self._open = False
        self._entry.in_flight -= 1
        return True


class Router:
    """Orders targets and keeps their breakers and loads.

    Args:
        monotonic: Seconds on a clock that never jumps.
        draw: Where chance comes from.
        failures: Failures in a row that open a breaker.
        cooldown_s: Seconds that a breaker stays open at first.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        draw: random.Random,
        *,
        failures: int = 5,
        cooldown_s: float = 5.0,
    ) -> None:
        self._monotonic = monotonic
        self._draw = draw
        self._failures = failures
        self._cooldown_s = cooldown_s
        self._entries: dict[tuple[str, str], _Entry] = {}

    def order(self, model: str, targets: Sequence[R]) -> list[R]:
        """The targets to be tried, first to last. Empty when every breaker is open."""
        now = self._monotonic()
        if len(targets) == 1:
            only = targets[0]
            return [only] if only.local or (only.weight > 0 and self._usable(model, only, now)) else []
        groups: dict[int, list[R]] = {}
        for target in targets:
            if target.weight > 0 and self._usable(model, target, now):
                groups.setdefault(target.priority, []).append(target)
        ordered: list[R] = []
        for priority in sorted(groups):
            ordered += self._shuffled(model, groups[priority])
        return ordered

    def lease(self, model: str, target: Routable) -> Lease | None:
        """Take a request's place at a target; None when its breaker lets none through at the moment."""
        entry = self._entry(model, target)
        if not target.local and not entry.breaker.enter(self._monotonic()):
            return None
        return Lease(entry, self._monotonic)

    def wait_s(self, model: str, targets: Sequence[Routable]) -> float:
        """Seconds until the first of the targets may be tried again."""
        now = self._monotonic()
        return min((self._entry(model, target).breaker.wait_s(now) for target in targets), default=0.0)

    def explain(self, model: str, targets: Sequence[Routable]) -> list[RouteStep]:
        """How a request for `model` would be routed now; draws nothing and changes nothing."""
        now = self._monotonic()
        usable = [target for target in targets if target.weight > 0 and self._usable(model, target, now)]
        ranked = sorted(usable, key=lambda target: (target.priority, -target.weight))
        first = [target for target in usable if target.priority == ranked[0].priority] if ranked else []
        total = sum(target.weight for target in first)
        steps: list[RouteStep] = []
        for target in sorted(targets, key=lambda target: (target.priority, -target.weight)):
            entry = self._entry(model, target)
            state = entry.breaker.state(now)
            steps.append(
                RouteStep(
                    target=target.name,
                    backend=target.backend,
                    priority=target.priority,
                    weight=target.weight,
                    order=ranked.index(target) + 1 if target in usable else None,
                    share=target.weight * 1_000_000 // total if target in first else 0,
                    in_flight=entry.in_flight,
                    breaker=state,
                    failed=entry.breaker.failed,
                    wait_ms=round(entry.breaker.wait_s(now) * 1000),
                    why=_why_left_out(target, state) if target not in usable else "",
                )
            )
        return steps

    def _shuffled(self, model: str, group: list[R]) -> list[R]:
        """One priority's targets in the order of trying."""
        left = list(group)
        ordered: list[R] = []
        while len(left) > 1:
            one = self._drawn(left)
            other = self._drawn([target for target in left if target is not one])
            # Cross-multiplied, so that load per weight is compared without a division.
            if self._load(model, other) * one.weight < self._load(model, one) * other.weight:
                one = other
            ordered.append(one)
            left.remove(one)
        return ordered + left

    def _drawn(self, targets: Sequence[R]) -> R:
        return self._draw.choices(targets, [target.weight for target in targets])[0]

    def _load(self, model: str, target: Routable) -> int:
        return self._entry(model, target).in_flight

    def _usable(self, model: str, target: Routable, now: float) -> bool:
        return target.local or self._entry(model, target).breaker.admits(now)

    def _entry(self, model: str, target: Routable) -> _Entry:
        key = (model, target.name)
        entry = self._entries.get(key)
        if entry is None:
            breaker = Breaker(failures=self._failures, cooldown_s=self._cooldown_s)
            entry = self._entries[key] = _Entry(breaker)
        return entry


def _why_left_out(target: Routable, state: BreakerState) -> str:
    if target.weight == 0:
        return "weight 0"
    return "circuit open after failures" if state == "open" else "being probed by another request"

"""How the next token of each row is drawn: what a request asks for, checked, and the draw itself.

Each choice has a random stream of its own, keyed by (seed, choice) and advanced by one number a token; no
neighbour in the batch can touch it. A token is where that number falls in the cumulated distribution, so the
same seed makes the same draws always. May import torch, numpy and the plugin API.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy
import torch
from headgate_plugin_api import InvalidRequest, Sampling

MAX_STOPS: Final = 16
MAX_STOP_CHARACTERS: Final = 256
GREEDY_BELOW: Final = 1e-5
"""A temperature under this is argmax: dividing by it would only lose digits."""

_WORD: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a model says of its own sampling (`generation_config.json`), used where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Defaults:
        """From a generation config; what it leaves out, or gives as null, is the neutral value."""
        temperature = document.get("temperature")
        if document.get("do_sample") is False:
            temperature = 0.0
        return cls(
            temperature=1.0 if temperature is None else float(temperature),
            top_p=float(document.get("top_p") or 1.0),
            top_k=int(document.get("top_k") or 0),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One request's way of drawing, every number checked: `temperature` 0 is argmax, `top_k` 0 is no cut."""

    temperature: float
    top_p: float
    top_k: int
    presence: float
    frequency: float
    stop: tuple[str, ...]
    seed: int | None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without chance."""
        return self.temperature < GREEDY_BELOW

    @property
    def cut(self) -> bool:
        """Whether unlikely tokens are left out, for which they must be sorted."""
        return self.top_p < 1 or self.top_k > 0

    @property
    def penalised(self) -> bool:
        """Whether tokens that were made already count less."""
        return self.presence != 0 or self.frequency != 0


def check(sampling: Sampling, defaults: Defaults) -> Rule:
    """The rule that a request's sampling asks for.

    Raises:
        InvalidRequest: A number out of range or not finite; names the field and the range.
    """
    return Rule(
        temperature=_within(sampling.temperature, defaults.temperature, "temperature", 0.0, 100.0),
        top_p=_within(sampling.top_p, defaults.top_p, "top_p", 0.0, 1.0),
        top_k=max(0, int(_within(sampling.top_k, defaults.top_k, "top_k", -1, 1 << 31))),
        presence=_within(sampling.presence_penalty, 0.0, "presence_penalty", -2.0, 2.0),
        frequency=_within(sampling.frequency_penalty, 0.0, "frequency_penalty", -2.0, 2.0),
        stop=_stops(sampling.stop),
        seed=sampling.seed,
    )


def _within(value: float | None, default: float, path: str, low: float, high: float) -> float:
    if value is None:
        return default
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequest(f"must be a number from {low:g} to {high:g}, not {value}", path=path)
    return value


def _stops(stops: Sequence[str]) -> tuple[str, ...]:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"at most {MAX_STOPS} stop strings, not {len(stops)}", path="stop")
    for at, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters, not {len(stop)}", path=f"stop[{at}]"
            )
    return tuple(stops)


@dataclass(slots=True)
class Drawer:
    """One choice's draws: its rule, its random stream, and the counts that its penalties need."""

    rule: Rule
    stream: numpy.random.Generator
    counts: dict[int, int] = field(default_factory=dict[int, int])

    @classmethod
    def seeded(cls, rule: Rule, seed: int, choice: int) -> Drawer:
        """The stream of one choice under a seed; any integer is a seed."""
        key = numpy.array([seed & _WORD, choice], dtype=numpy.uint64)
        return cls(rule, numpy.random.Generator(numpy.random.Philox(key=key)))

    def took(self, token: int) -> None:
        """Count a token for the penalties."""
        if self.rule.penalised:
            self.counts[token] = self.counts.get(token, 0) + 1


def draw(logits: torch.Tensor, drawers: Sequence[Drawer]) -> list[int | None]:
    """The next token of each row of `logits` [rows, vocabulary]; None where the row holds NaN or +inf.

    Rows do not influence each other: a broken one is reported and the others are drawn as ever.
    """
    scores = logits.float()
    sound = ~(scores.isnan() | scores.isposinf()).any(dim=-1)
    if any(drawer.counts for drawer in drawers):
        scores = scores.clone()
        for row, drawer in enumerate(drawers):
            _penalise(scores[row], drawer)
    tokens = scores.argmax(dim=-1)
    # A row must draw the same whoever its neighbours are, so rows with a cut, which are sorted, go by themselves.
    for cut in (False, True):
        chosen = [row for row, drawer in enumerate(drawers) if not drawer.rule.greedy and drawer.rule.cut == cut]
        if chosen:
            rows = torch.tensor(chosen, device=scores.device)
            tokens[rows] = _by_chance(
                scores[rows].nan_to_num(nan=0.0, posinf=0.0), [drawers[row] for row in chosen]
            )
    # torch does not say of what its lists are.
    taken = cast("list[int]", tokens.tolist())  # pyright: ignore[reportUnknownMemberType]
    whole = cast("list[bool]", sound.tolist())  # pyright: ignore[reportUnknownMemberType]
    return [token if ok else None for token, ok in zip(taken, whole, strict=True)]


def _penalise(scores: torch.Tensor, drawer: Drawer) -> None:
    """Lower, in place, what was made already: once for being there and once for each time."""
    if not drawer.counts:
        return
    made = torch.tensor(list(drawer.counts), device=scores.device)
    times = torch.tensor(list(drawer.counts.values()), device=scores.device, dtype=scores.dtype)
    scores[made] -= drawer.rule.presence + drawer.rule.frequency * times


def _by_chance(scores: torch.Tensor, drawers: Sequence[Drawer]) -> torch.Tensor:
    """Inverse of the cumulated distribution, after temperature, top_k and top_p, in this order.

    Either all rows have a cut or none has.
    """

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, device=scores.device, dtype=dtype).unsqueeze(1)

    uniform = column([float(drawer.stream.random()) for drawer in drawers], torch.float64)
    # The largest score is 0 after this, so no temperature can make an infinity out of it.
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / column(
        [drawer.rule.temperature for drawer in drawers]
    )
    order: torch.Tensor | None = None
    if drawers[0].rule.cut:
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(scores.shape[-1], device=scores.device)
        most = column([drawer.rule.top_k or scores.shape[-1] for drawer in drawers])
        scores = scores.masked_fill(rank >= most, -math.inf)
    chances = scores.double().softmax(dim=-1)
    summed = chances.cumsum(dim=-1)
    if order is not None:
        # What comes after the likeliest tokens that reach top_p together; the likeliest always stays.
        before = summed - chances
        cut = before >= column([drawer.rule.top_p for drawer in drawers], torch.float64)
        cut[:, 0] = False
        summed = chances.masked_fill(cut, 0.0).cumsum(dim=-1)
    # Strictly above, so that a token of chance 0 is never met; the clamp is for u x total rounding up to total.
    place = torch.searchsorted(summed, uniform * summed[:, -1:], right=True)
    last = (summed < summed[:, -1:]).sum(dim=-1, keepdim=True)
    place = torch.minimum(place, last)
    return (place if order is None else order.gather(-1, place)).squeeze(1)

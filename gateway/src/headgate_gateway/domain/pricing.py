"""Prices: immutable versions of rates, and what usage costs under them, exactly.

All arithmetic is in integers over one common denominator, rounded once. A price may have tiers, of one of two
kinds: by *context*, where a request with more input than a threshold is priced whole by other rates; or
*graduated*, where the units of a dimension beyond a threshold are. And it may have a minimum, which a request
that used anything costs at least. May import money and usage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal

import msgspec
from headgate_plugin_api import DIMENSIONS, Dimension, Usage

from headgate_gateway.domain.admission import Nano
from headgate_gateway.domain.money import format_amount, parse_amount

DENOMINATOR: Final = 3_000_000
"""Every unit a price may be quoted in (a million tokens, one request, a minute, a second) divides into it, so
that all costs of a request are integers over this number and their sum is exact."""

PriceSource = Literal["key", "organization", "admin", "config", "plugin"]

_QUOTED: Final[dict[str, tuple[Dimension, int]]] = {
    "input": ("input", 1_000_000),
    "cache_read": ("cache_read", 1_000_000),
    "cache_write": ("cache_write", 1_000_000),
    "output": ("output", 1_000_000),
    "reasoning": ("reasoning", 1_000_000),
    "request": ("requests", 1),
    "image": ("images", 1),
    "audio_minute": ("audio_ms", 60_000),
    "gpu_second": ("gpu_ms", 1_000),
}
"""How prices are quoted: the name in a config, the dimension it prices, and how many units one amount buys."""

_STANDS_IN: Final[dict[Dimension, Dimension]] = {
    "cache_read": "input",
    "cache_write": "input",
    "reasoning": "output",
}
"""A dimension without a rate of its own costs what this one costs: cached input is still input."""

_INPUTS: Final = (0, 1, 2)
_OUTPUTS: Final = (3, 4)
"""Places in `DIMENSIONS` of what may turn into each other: input cached or not, output said or thought."""

_MOST_ABOVE: Final = 10**12


class InvalidPrice(ValueError):
    """A price names an unknown rate or a negative amount; the message says which."""


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """`nano` nano-units buy `per` units of a dimension."""

    nano: Nano
    per: int


Rates = dict[Dimension, Rate]
TierKind = Literal["context", "graduated"]


class Tier(msgspec.Struct, frozen=True, array_like=True):
    """Rates beyond a threshold; a dimension that is absent keeps what it had.

    `above` is input tokens of the request (context) or units of the dimension (graduated), exclusive.
    """

    above: int
    rates: Rates


class Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a price version says, as a store keeps it.

    Attributes:
        tiers: In rising order of their thresholds.
        by: What kind they are.
        minimum: Nano-units that a request costs at least, once it used anything.
        margin: Of what other price these terms are a multiple, see `margins`; they hold it already.
    """

    rates: Rates = {}
    tiers: tuple[Tier, ...] = ()
    by: TierKind = "context"
    minimum: Nano = 0
    margin: int | None = None


Quote = Mapping[str, str | tuple[Mapping[str, str | int], ...]]
"""A price as people state it: decimal texts by rate, `minimum`, and either `context` or `graduated`, a list of
tiers of which each has `above` and rates; for example `{"input": "1.25", "output": "10", "context": [{"above":
200000, "input": "2.50", "output": "15"}]}`."""

_MOST_TIERS: Final = 16


def parse_rates(quoted: Mapping[str, str]) -> Rates:
    """Rates from decimal texts as a config has them, for example `{"input": "0.15", "output": "0.60"}`.

    Raises:
        InvalidPrice: An unknown name or a negative amount.
        InvalidAmount: Not a decimal of at most 9 places.
    """
    rates: Rates = {}
    for name, amount in quoted.items():
        if name not in _QUOTED:
            raise InvalidPrice(f"{name!r} is not a rate; expected one of {', '.join(_QUOTED)}")
        dimension, per = _QUOTED[name]
        rates[dimension] = Rate(_amount(name, amount), per)
    return rates


def parse_quote(quoted: Mapping[str, Any]) -> Terms:
    """Terms from a `Quote`.

    Raises:
        InvalidPrice: An unknown name, a negative amount, tiers of both kinds, or thresholds that do not rise.
        InvalidAmount: Not a decimal of at most 9 places.
    """
    flat = dict(quoted)
    minimum = _amount("minimum", flat.pop("minimum", "0"))
    by_context, graduated = flat.pop("context", ()), flat.pop("graduated", ())
    if by_context and graduated:
        raise InvalidPrice("a price has tiers by context or graduated ones, not both")
    rates = parse_rates(flat)
    if (minimum or by_context or graduated) and not rates:
        raise InvalidPrice("a price with tiers or a minimum needs rates too")
    tiers = _parse_tiers(by_context or graduated)
    return Terms(rates=rates, tiers=tiers, by="graduated" if graduated else "context", minimum=minimum)


def _parse_tiers(quoted: Sequence[object]) -> tuple[Tier, ...]:
    if len(quoted) > _MOST_TIERS:
        raise InvalidPrice(f"a price has at most {_MOST_TIERS} tiers, not {len(quoted)}")
    tiers: list[Tier] = []
    for found in quoted:
        if not isinstance(found, Mapping):
            raise InvalidPrice(f"expected a list of tiers, each with `above` and rates, got {found!r}")
        rates: dict[str, Any] = {**found}
        above = rates.pop("above", None)
        least = tiers[-1].above if tiers else 0
        if not isinstance(above, int) or not least < above <= _MOST_ABOVE:
            raise InvalidPrice(f"above must be a whole number that rises from {least + 1}, got {above!r}")
        tiers.append(Tier(above, parse_rates(rates)))
    return tuple(tiers)


def _amount(name: str, text: object) -> Nano:
    if not isinstance(text, str):
        raise InvalidPrice(f"{name!r} must be a decimal text, got {text!r}")
    nano = parse_amount(text)
    if nano < 0:
        raise InvalidPrice(f"the rate {name!r} is negative: {text}")
    return nano


def quoted_rates(rates: Mapping[Dimension, Rate]) -> dict[str, str]:
    """Rates as a config states them: what `parse_rates` reads."""
    found: dict[str, str] = {}
    for name, (dimension, per) in _QUOTED.items():
        if (rate := rates.get(dimension)) is not None:
            found[name] = format_amount(rate.nano * per // rate.per)
    return found


def quoted_terms(terms: Terms) -> dict[str, Any]:
    """Terms as people state them: what `parse_quote` reads."""
    found: dict[str, Any] = dict(quoted_rates(terms.rates))
    if terms.minimum:
        found["minimum"] = format_amount(terms.minimum)
    if terms.tiers:
        found[terms.by] = [{"above": tier.above, **quoted_rates(tier.rates)} for tier in terms.tiers]
    return found


class PriceVersion(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a model costs, from one moment on; never changed, only followed by another version.

    Attributes:
        id: `prc_...`; pinned by holds and named in records and the `headgate-price` header.
        model: The configured model id.
        rates: By dimension; a dimension that is absent falls back to its kind (cached input costs what input
            costs, reasoning what output costs) and else costs nothing.
        source: Who set it.
        scope: The key or organization it is for; empty for everyone.
        effective_us: From when on, microseconds UTC.
        tiers: Rates beyond thresholds, see `Terms`.
        by: What kind of tiers.
        minimum: What a request that used anything costs at least.
        margin: See `Terms`.
    """

    id: str
    model: str
    rates: Rates
    source: PriceSource = "admin"
    scope: str = ""
    effective_us: int = 0
    tiers: tuple[Tier, ...] = ()
    by: TierKind = "context"
    minimum: Nano = 0
    margin: int | None = None

    @property
    def terms(self) -> Terms:
        """What it says, without who and when."""
        return Terms(
            rates=self.rates, tiers=self.tiers, by=self.by, minimum=self.minimum, margin=self.margin
        )  # fmt: skip

    @cached_property
    def worst(self) -> tuple[tuple[int, ...], int]:
        """See `_worst`; for a version without tiers."""
        return _worst(self.numerators)

    @cached_property
    def numerators(self) -> tuple[int, ...]:
        """Cost of one unit of each dimension, in the order of `DIMENSIONS`, over `DENOMINATOR`, below tiers."""
        return _numerators(self.rates)

    @cached_property
    def bands(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(threshold, unit costs) from the ground up; each tier inherits from the last."""
        found = [(0, self.numerators)]
        rates: Rates = self.rates
        for tier in self.tiers:
            rates = {**rates, **tier.rates}
            found.append((tier.above, _numerators(rates)))
        return tuple(found)


def _numerators(rates: Rates) -> tuple[int, ...]:
    found: list[int] = []
    for dimension in DIMENSIONS:
        rate = rates.get(dimension) or rates.get(_STANDS_IN.get(dimension, dimension))
        found.append(rate.nano * (DENOMINATOR // rate.per) if rate else 0)
    return tuple(found)


class Costs(msgspec.Struct, frozen=True):
    """What usage costs: the total, rounded once, and its parts before rounding in 1e-6 nano-units."""

    total: Nano
    parts: dict[Dimension, int]


Counts = tuple[int, int, int, int, int, int, int, int, int]
"""What a usage counts, by `DIMENSIONS`."""

quantities: Final[Callable[[Usage], Counts]] = msgspec.structs.astuple
"""The counts of a usage in the order of `DIMENSIONS`, which is that of its fields."""


def usage_of(counts: tuple[int, ...] | list[int]) -> Usage:
    """The inverse of `quantities`."""
    return Usage(**dict(zip(DIMENSIONS, counts, strict=True)))


def half_even(numerator: int, denominator: int) -> int:
    """The nearest integer to a non-negative fraction; exactly between two, the even one."""
    quotient, remainder = divmod(numerator, denominator)
    double = remainder * 2
    if double > denominator or (double == denominator and quotient & 1):
        quotient += 1
    return quotient


def _unit_costs(counts: Sequence[int], version: PriceVersion) -> tuple[int, ...]:
    """What all units of each dimension cost together, over `DENOMINATOR`, without the minimum."""
    if not version.tiers:
        return tuple([count * rate for count, rate in zip(counts, version.numerators, strict=True)])
    bands = version.bands
    if version.by == "context":
        context = counts[0] + counts[1] + counts[2]
        rates = [band for above, band in bands if context > above or not above][-1]
        return tuple([count * rate for count, rate in zip(counts, rates, strict=True)])
    ends = [above for above, _ in bands[1:]]
    return tuple(
        sum(
            max(0, min(count, end) - above) * rates[place]
            for (above, rates), end in zip(bands, [*ends, count], strict=True)
        )
        for place, count in enumerate(counts)
    )


def numerator(counts: Sequence[int], version: PriceVersion) -> int:
    """What counts cost, exactly, over `DENOMINATOR`."""
    if version.tiers:
        total = sum(_unit_costs(counts, version))
    else:
        total = sum([count * rate for count, rate in zip(counts, version.numerators, strict=True) if count])
    least = version.minimum * DENOMINATOR
    return least if total < least and any(counts) else total


def bound(counts: Sequence[int], version: PriceVersion) -> tuple[int, int]:
    """The most that a request can cost whose usage is within these counts, whatever its tokens become.

    A token that may turn out cached or not, thought or said, is taken at the dearest it can become; of tiers by
    context those count that the input can reach, of graduated output all.

    Returns:
        The cost of all but the output, and that of one output token, over `DENOMINATOR`.
    """
    rates, step = _worst(_within_reach(counts, version)) if version.tiers else version.worst
    fixed = sum([count * rate for count, rate in zip(counts, rates, strict=True) if count])
    return max(fixed, version.minimum * DENOMINATOR), step


def _worst(rates: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """What a unit of each dimension can cost at most, whatever it becomes; and apart from these, of output."""
    dearest_input = max([rates[place] for place in _INPUTS])
    others = [0 if place in _OUTPUTS else rate for place, rate in enumerate(rates)]
    others[: len(_INPUTS)] = [dearest_input] * len(_INPUTS)
    return tuple(others), max([rates[place] for place in _OUTPUTS])


def _within_reach(counts: Sequence[int], version: PriceVersion) -> tuple[int, ...]:
    """Of each dimension the dearest unit within reach of these counts; the version has tiers."""
    context = sum([counts[place] for place in _INPUTS])
    bands = version.bands
    if version.by == "context":
        within = [rates for above, rates in bands if context > above or not above]
        return tuple(map(max, zip(*within, strict=True)))
    reach = [
        version.tiers[-1].above + 1 if place in _OUTPUTS else context if place in _INPUTS else counts[place]
        for place in range(len(DIMENSIONS))
    ]
    return tuple(
        max([rates[place] for above, rates in bands if units > above or not above])
        for place, units in enumerate(reach)
    )


def bound_numerator(counts: Sequence[int], version: PriceVersion) -> int:
    """The most that counts, output included, can cost, over `DENOMINATOR`."""
    fixed, step = bound(counts, version)
    return fixed + step * sum([counts[place] for place in _OUTPUTS])


def parts(counts: Sequence[int], version: PriceVersion) -> dict[Dimension, int]:
    """What each dimension costs, in 1e-6 nano-units; dimensions that cost nothing are left out.

    What a minimum adds is a cost of the request itself.
    """
    costs = dict(zip(DIMENSIONS, _unit_costs(counts, version), strict=True))
    costs["requests"] += numerator(counts, version) - sum(costs.values())
    return {name: half_even(cost, DENOMINATOR // 1_000_000) for name, cost in costs.items() if cost}


def price(usage: Usage, version: PriceVersion) -> Costs:
    """What usage costs: an exact rational, rounded half-even once."""
    counts = quantities(usage)
    return Costs(half_even(numerator(counts, version), DENOMINATOR), parts(counts, version))


def upper(usage: Usage, version: PriceVersion) -> Nano:
    """The most that usage within these quantities can cost, rounded up: what a hold is taken for."""
    return -(-bound_numerator(quantities(usage), version) // DENOMINATOR)

"""Prices: immutable versions of rates, and what usage costs under them, exactly.

All arithmetic is in integers over one common denominator, rounded once. May import money and usage.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final, Literal

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

_INPUTS: Final[tuple[Dimension, ...]] = ("input", "cache_read", "cache_write")
_OUTPUTS: Final[tuple[Dimension, ...]] = ("output", "reasoning")


class InvalidPrice(ValueError):
    """A price names an unknown rate or a negative amount; the message says which."""


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """`nano` nano-units buy `per` units of a dimension."""

    nano: Nano
    per: int


def parse_rates(quoted: Mapping[str, str]) -> dict[Dimension, Rate]:
    """Rates from decimal texts as a config has them, for example `{"input": "0.15", "output": "0.60"}`.

    Raises:
        InvalidPrice: An unknown name or a negative amount.
        InvalidAmount: Not a decimal of at most 9 places.
    """
    rates: dict[Dimension, Rate] = {}
    for name, amount in quoted.items():
        if name not in _QUOTED:
            raise InvalidPrice(f"{name!r} is not a rate; expected one of {', '.join(_QUOTED)}")
        dimension, per = _QUOTED[name]
        nano = parse_amount(amount)
        if nano < 0:
            raise InvalidPrice(f"the rate {name!r} is negative: {amount}")
        rates[dimension] = Rate(nano, per)
    return rates


def quoted_rates(rates: Mapping[Dimension, Rate]) -> dict[str, str]:
    """Rates as a config states them: what `parse_rates` reads."""
    found = {}
    for name, (dimension, per) in _QUOTED.items():
        if (rate := rates.get(dimension)) is not None:
            found[name] = format_amount(rate.nano * per // rate.per)
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
    """

    id: str
    model: str
    rates: dict[Dimension, Rate]
    source: PriceSource = "admin"
    scope: str = ""
    effective_us: int = 0

    @cached_property
    def numerators(self) -> tuple[int, ...]:
        """Cost of one unit of each dimension, in the order of `DIMENSIONS`, over `DENOMINATOR`."""
        found = []
        for dimension in DIMENSIONS:
            rate = self.rates.get(dimension) or self.rates.get(_STANDS_IN.get(dimension, dimension))
            found.append(rate.nano * (DENOMINATOR // rate.per) if rate else 0)
        return tuple(found)

    @cached_property
    def dearest(self) -> tuple[int, ...]:
        """The same for a bound: a token that may be cached or not is held at the dearest it can become."""
        by_name = dict(zip(DIMENSIONS, self.numerators, strict=True))
        top_input = max(by_name[name] for name in _INPUTS)
        top_output = max(by_name[name] for name in _OUTPUTS)
        tops = {**dict.fromkeys(_INPUTS, top_input), **dict.fromkeys(_OUTPUTS, top_output)}
        return tuple(tops.get(name, by_name[name]) for name in DIMENSIONS)

    @cached_property
    def step(self) -> int:
        """What one more output token adds to a hold, over `DENOMINATOR`."""
        return self.dearest[DIMENSIONS.index("output")]


class Costs(msgspec.Struct, frozen=True):
    """What usage costs: the total, rounded once, and its parts before rounding in 1e-6 nano-units."""

    total: Nano
    parts: dict[Dimension, int]


def quantities(usage: Usage) -> tuple[int, ...]:
    """The counts of a usage in the order of `DIMENSIONS`."""
    return (
        usage.input,
        usage.cache_read,
        usage.cache_write,
        usage.output,
        usage.reasoning,
        usage.images,
        usage.audio_ms,
        usage.requests,
        usage.gpu_ms,
    )


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


def numerator(counts: tuple[int, ...], version: PriceVersion) -> int:
    """What counts cost, exactly, over `DENOMINATOR`."""
    return sum([count * rate for count, rate in zip(counts, version.numerators, strict=True) if count])


def bound_numerator(counts: tuple[int, ...], version: PriceVersion) -> int:
    """The most that counts can cost, whatever mix of cached and plain tokens they become."""
    return sum([count * rate for count, rate in zip(counts, version.dearest, strict=True) if count])


def parts(counts: tuple[int, ...], version: PriceVersion) -> dict[Dimension, int]:
    """What each dimension costs, in 1e-6 nano-units; dimensions that cost nothing are left out."""
    return {
        dimension: half_even(count * rate, DENOMINATOR // 1_000_000)
        for dimension, count, rate in zip(DIMENSIONS, counts, version.numerators, strict=True)
        if count and rate
    }


def price(usage: Usage, version: PriceVersion) -> Costs:
    """What usage costs: an exact rational, rounded half-even once."""
    counts = quantities(usage)
    return Costs(half_even(numerator(counts, version), DENOMINATOR), parts(counts, version))


def upper(usage: Usage, version: PriceVersion) -> Nano:
    """The most that usage of these quantities can cost, rounded up: what a hold is taken for."""
    return -(-bound_numerator(quantities(usage), version) // DENOMINATOR)

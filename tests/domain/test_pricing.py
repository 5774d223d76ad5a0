"""Prices are exact rationals, rounded half-even once; a bound is never below what usage can cost."""

from fractions import Fraction

import pytest
from headgate_gateway.domain.money import InvalidAmount
from headgate_gateway.domain.pricing import (
    InvalidPrice,
    PriceVersion,
    Rate,
    half_even,
    parse_rates,
    price,
    quoted_rates,
    upper,
)
from headgate_plugin_api import DIMENSIONS, Usage
from hypothesis import given
from hypothesis import strategies as st

PER = {"images": 1, "requests": 1, "audio_ms": 60_000, "gpu_ms": 1_000}
counts = st.integers(0, 10**7)
usages = st.builds(Usage, **dict.fromkeys(DIMENSIONS, counts))
versions = st.dictionaries(st.sampled_from(DIMENSIONS), st.integers(0, 10**12), min_size=1).map(
    lambda found: PriceVersion(
        id="prc_1", model="m", rates={name: Rate(nano, PER.get(name, 10**6)) for name, nano in found.items()}
    )
)


def exact(usage: Usage, version: PriceVersion) -> Fraction:
    """What usage costs, by another way."""
    instead = {"cache_read": "input", "cache_write": "input", "reasoning": "output"}
    total = Fraction(0)
    for name in DIMENSIONS:
        rate = version.rates.get(name) or version.rates.get(instead.get(name, name))  # type: ignore[call-overload]
        if rate:
            total += Fraction(getattr(usage, name) * rate.nano, rate.per)
    return total


@given(usages, versions)
def test_price_is_the_exact_rational_rounded_once(usage: Usage, version: PriceVersion) -> None:
    costs = price(usage, version)
    assert costs.total == round(exact(usage, version))
    assert abs(Fraction(sum(costs.parts.values()), 10**6) - exact(usage, version)) <= Fraction(9, 2 * 10**6)


@given(usages, versions, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_bound_holds_whatever_mix_tokens_become(
    usage: Usage, version: PriceVersion, read: int, write: int, thought: int
) -> None:
    read = min(read, usage.input)
    write = min(write, usage.input - read)
    thought = min(thought, usage.output)
    became = Usage(
        **{name: getattr(usage, name) for name in ("images", "audio_ms", "requests", "gpu_ms")},
        input=usage.input - read - write,
        cache_read=usage.cache_read + read,
        cache_write=usage.cache_write + write,
        output=usage.output - thought,
        reasoning=usage.reasoning + thought,
    )
    assert price(became, version).total <= upper(usage, version)


@given(st.integers(0, 10**15), st.integers(1, 10**7))
def test_half_even(numerator: int, denominator: int) -> None:
    assert half_even(numerator, denominator) == round(Fraction(numerator, denominator))


def test_quotes_of_every_kind() -> None:
    rates = parse_rates({"input": "0.15", "request": "0.001", "audio_minute": "0.001", "gpu_second": "0.0002"})
    version = PriceVersion(id="prc_1", model="m", rates=rates)
    assert price(Usage(input=1_000_000), version).total == 150_000_000
    assert price(Usage(requests=3), version).total == 3_000_000
    assert price(Usage(audio_ms=60_000 * 3), version).total == 3_000_000
    assert price(Usage(audio_ms=1), version).total == 17  # 16.67
    assert price(Usage(gpu_ms=500), version).total == 100_000


def test_bad_quotes() -> None:
    with pytest.raises(InvalidPrice, match="'inptu' is not a rate"):
        parse_rates({"inptu": "1"})
    with pytest.raises(InvalidPrice, match="negative"):
        parse_rates({"input": "-1"})
    with pytest.raises(InvalidAmount):
        parse_rates({"input": "0.00000000001"})


def test_rates_are_shown_as_they_were_quoted() -> None:
    quoted = {"input": "0.15", "cache_read": "0.075", "request": "0.001", "audio_minute": "6", "gpu_second": "0"}
    assert quoted_rates(parse_rates(quoted)) == quoted

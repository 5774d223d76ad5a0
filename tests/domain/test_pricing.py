"""Prices are exact rationals, rounded half-even once; a bound is never below what usage can cost."""

from fractions import Fraction
from math import ceil
from typing import Any

import msgspec
import pytest
from headgate_gateway.domain.money import InvalidAmount
from headgate_gateway.domain.pricing import (
    InvalidPrice,
    PriceVersion,
    Rate,
    Tier,
    half_even,
    parse_quote,
    parse_rates,
    price,
    quantities,
    quoted_rates,
    upper,
    usage_of,
)
from headgate_gateway.ledger.repricing import Repriced
from headgate_plugin_api import DIMENSIONS, Dimension, Usage
from hypothesis import given
from hypothesis import strategies as st

PER = {"images": 1, "requests": 1, "audio_ms": 60_000, "gpu_ms": 1_000}
counts = st.integers(0, 10**7)
usages = st.builds(Usage, **dict.fromkeys(DIMENSIONS, counts))


def rates_of(found: dict[Dimension, int]) -> dict[Dimension, Rate]:
    return {name: Rate(nano, PER.get(name, 10**6)) for name, nano in found.items()}


rates = st.dictionaries(st.sampled_from(DIMENSIONS), st.integers(0, 10**12), min_size=1).map(rates_of)
flat = st.builds(PriceVersion, id=st.just("prc_1"), model=st.just("m"), rates=rates)
tiers = st.lists(st.tuples(st.integers(1, 10**7), rates), max_size=3, unique_by=lambda tier: tier[0]).map(
    lambda found: tuple(Tier(above, changed) for above, changed in sorted(found, key=lambda tier: tier[0]))
)
versions = st.builds(
    PriceVersion, id=st.just("prc_1"), model=st.just("m"), rates=rates, tiers=tiers,
    by=st.sampled_from(("context", "graduated")), minimum=st.integers(0, 10**12),
)  # fmt: skip


def exact(usage: Usage, version: PriceVersion) -> Fraction:
    """What usage costs, by the audit's way, from what a store keeps."""
    stored = msgspec.json.encode(version.terms).decode()
    return Repriced(stored).cost({name: getattr(usage, name) for name in DIMENSIONS})


@given(usages, versions)
def test_price_is_the_exact_rational_rounded_once(usage: Usage, version: PriceVersion) -> None:
    costs = price(usage, version)
    assert costs.total == round(exact(usage, version))
    assert abs(Fraction(sum(costs.parts.values()), 10**6) - exact(usage, version)) <= Fraction(9, 2 * 10**6)


def test_quantities_are_in_the_order_of_the_dimensions() -> None:
    counts = range(1, len(DIMENSIONS) + 1)
    assert quantities(Usage(**dict(zip(DIMENSIONS, counts, strict=True)))) == tuple(counts)


@given(usages, flat)
def test_without_tiers_every_unit_costs_its_rate(usage: Usage, version: PriceVersion) -> None:
    instead = {"cache_read": "input", "cache_write": "input", "reasoning": "output"}
    total = Fraction(0)
    for name in DIMENSIONS:
        rate = version.rates.get(name) or version.rates.get(instead.get(name, name))  # type: ignore[call-overload]
        if rate:
            total += Fraction(getattr(usage, name) * rate.nano, rate.per)
    assert price(usage, version).total == round(total)


@given(usages, versions, st.data())
def test_a_bound_holds_whatever_mix_tokens_become(
    usage: Usage, version: PriceVersion, data: st.DataObject
) -> None:
    """Fewer of anything, cached or not, said or thought: never above the bound."""
    tokens = data.draw(st.integers(0, usage.input + usage.cache_read + usage.cache_write))
    read = data.draw(st.integers(0, tokens))
    written = data.draw(st.integers(0, tokens - read))
    made = data.draw(st.integers(0, usage.output + usage.reasoning))
    thought = data.draw(st.integers(0, made))
    others = ("images", "audio_ms", "requests", "gpu_ms")
    became = Usage(
        **{name: data.draw(st.integers(0, getattr(usage, name))) for name in others},
        input=tokens - read - written, cache_read=read, cache_write=written, output=made - thought,
        reasoning=thought,
    )  # fmt: skip
    assert price(became, version).total <= upper(usage, version)


@given(usages, versions)
def test_the_audit_finds_the_same_bound(usage: Usage, version: PriceVersion) -> None:
    counts = list(quantities(usage))
    counts[4] = 0
    repriced = Repriced(msgspec.json.encode(version.terms).decode())
    assert upper(usage_of(counts), version) == ceil(repriced.dearest(counts))


LONG = {"input": "1.25", "output": "10", "context": ({"above": 200_000, "input": "2.50", "output": "15"},)}


def test_a_long_context_is_priced_whole_by_its_tier() -> None:
    version = quoted(LONG)
    assert price(Usage(input=200_000, output=1000), version).total == 250_000_000 + 10_000_000
    assert price(Usage(input=100_000, cache_read=100_001, output=1000), version).total == 500_002_500 + 15_000_000
    assert upper(Usage(input=200_000, output=1000), version) == 260_000_000
    assert upper(Usage(input=200_001, output=1000), version) == 515_002_500


def test_graduated_units_cost_what_their_band_says() -> None:
    version = quoted(
        {"input": "2", "graduated": ({"above": 1000, "input": "1"}, {"above": 3000, "input": "0.5"})}
    )
    assert price(Usage(input=1000), version).total == 2_000_000
    assert price(Usage(input=4000), version).total == 2_000_000 + 2_000_000 + 500_000


def test_a_minimum_is_the_least_of_a_request_that_used_anything() -> None:
    version = quoted({"input": "1", "minimum": "0.0005"})
    assert price(Usage(), version).total == 0
    costs = price(Usage(input=100), version)
    assert (costs.total, costs.parts) == (500_000, {"input": 100_000_000_000, "requests": 400_000_000_000})
    assert price(Usage(input=1000), version).total == 1_000_000
    assert upper(Usage(input=100), version) == 500_000


def quoted(quote: Any) -> PriceVersion:
    terms = parse_quote(quote)
    return PriceVersion(
        id="prc_1", model="m", rates=terms.rates, tiers=terms.tiers, by=terms.by, minimum=terms.minimum
    )


@pytest.mark.parametrize(
    ("quote", "message"),
    [
        ({"minimum": "1"}, "needs rates"),
        ({"input": "1", "minimum": "-1"}, "'minimum' is negative"),
        ({"input": "1", "context": ({"input": "1"},)}, "above must be a whole number"),
        ({"input": "1", "context": ({"above": 5, "input": "1"},) * 2}, "rises from 6"),
        ({"input": "1", "context": ({"above": 5},), "graduated": ({"above": 5},)}, "not both"),
        ({"input": "1", "context": ({"above": 5, "inptu": "1"},)}, "'inptu' is not a rate"),
        ({"input": "1", "context": "2"}, "a list of tiers"),
        ({"input": "1", "graduated": ("2",)}, "a list of tiers"),
        ({"input": 1}, "'input' must be a decimal text"),
    ],
)  # fmt: skip
def test_bad_terms_are_named(quote: Any, message: str) -> None:
    with pytest.raises(InvalidPrice, match=message):
        parse_quote(quote)


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

"""A margin multiplies every amount of a price, each rounded half-even to a nano-unit, once."""

from __future__ import annotations

from fractions import Fraction

import pytest
from headgate_gateway.domain import money
from headgate_gateway.domain.margins import MOST, WHOLE, format_margin, parse_margin, with_margin
from headgate_gateway.domain.pricing import InvalidPrice, Rate, Rates, Terms, Tier
from headgate_plugin_api import DIMENSIONS
from hypothesis import given
from hypothesis import strategies as st

amounts = st.integers(0, 10**15)
rates = st.dictionaries(st.sampled_from(DIMENSIONS), amounts, min_size=1).map(
    lambda found: {name: Rate(nano, 1000) for name, nano in found.items()}
)
margins = st.integers(-WHOLE, MOST)


@given(rates, rates, amounts, margins)
def test_every_amount_is_the_exact_product_rounded_once(
    below: Rates, above: Rates, minimum: int, margin: int
) -> None:
    terms = Terms(rates=below, tiers=(Tier(10, above),), minimum=minimum)
    raised = with_margin(terms, margin)
    factor = Fraction(WHOLE + margin, WHOLE)
    for before, after in ((below, raised.rates), (above, raised.tiers[0].rates)):
        assert {name: (round(rate.nano * factor), rate.per) for name, rate in before.items()} == {
            name: (rate.nano, rate.per) for name, rate in after.items()
        }
    assert (raised.minimum, raised.margin) == (round(minimum * factor), margin)


def test_halves_go_to_the_even() -> None:
    raised = [with_margin(Terms(minimum=minimum), WHOLE // 2).minimum for minimum in (1, 3, 5)]
    assert raised == [2, 4, 8]  # 1.5, 4.5, 7.5


@given(margins)
def test_what_is_shown_reads_back(margin: int) -> None:
    assert parse_margin(format_margin(margin)) == margin


def test_percent_may_be_signed_and_say_so() -> None:
    assert [parse_margin(text) for text in ("20", "+20%", "-12.5", "0.0001")] == [200_000, 200_000, -125_000, 1]


@pytest.mark.parametrize("text", ["", "x", "1.00001", "-100.1", "10001", "1e2", "٢", 20, None])
def test_what_is_no_margin_is_refused(text: object) -> None:
    with pytest.raises(InvalidPrice):
        parse_margin(text)


def test_a_price_beyond_what_can_be_kept_is_refused() -> None:
    with pytest.raises(InvalidPrice, match="beyond"):
        with_margin(Terms(minimum=money.MAX), WHOLE)

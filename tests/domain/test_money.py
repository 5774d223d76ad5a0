"""Money is exact: texts and nano-units are the same numbers."""

from decimal import Decimal

import pytest
from headgate_gateway.domain.money import MAX, InvalidAmount, format_amount, parse_amount
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(-MAX, MAX))
def test_every_amount_survives_the_text(nano: int) -> None:
    text = format_amount(nano)
    assert parse_amount(text) == nano
    assert "e" not in text.lower()
    assert Decimal(text) * 10**9 == nano


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("1", 10**9),
        ("0.001", 10**6),
        ("-2.50", -25 * 10**8),
        ("0.000000001", 1),
        ("1.0000000000", 10**9),
    ],
)
def test_parse(text: str, nano: int) -> None:
    assert parse_amount(text) == nano


@pytest.mark.parametrize(("nano", "text"), [(0, "0"), (1, "0.000000001"), (10**9, "1"), (-5 * 10**8, "-0.5")])
def test_format(nano: int, text: str) -> None:
    assert format_amount(nano) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0000000001", "more than 9 decimals"),
        ("1e3", "not an amount"),
        ("", "not an amount"),
        (" 1", "not an amount"),
        ("1.", "not an amount"),
        ("NaN", "not an amount"),
        ("٣", "not an amount"),
        ("9999999999", "too large"),
    ],
)
def test_refuses(text: str, why: str) -> None:
    with pytest.raises(InvalidAmount, match=why):
        parse_amount(text)

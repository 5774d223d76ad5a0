"""Money is exact, and what is no money is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
from headgate._core.money import Cost, amount, format_nano, to_nano
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_any_amount_survives_the_wire(nano: int) -> None:
    text = format_nano(nano)
    assert to_nano(text) == nano
    assert "e" not in text.lower()
    assert Cost(nano).amount == Decimal(text)


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (-20_000_000_000, "-20"), (100, "0.0000001")],
)
def test_how_amounts_are_written(nano: int, text: str) -> None:
    assert str(Cost(nano)) == text


@pytest.mark.parametrize(
    "value", ["0.0000000001", "x", "", "inf", "nan", 1.5, True, None, "1e30", [], "99999999999"]
)
def test_what_is_no_amount(value: object) -> None:
    assert to_nano(value) is None
    assert Cost.parse(value) is None
    with pytest.raises(ValueError, match=r"max_cost: .* is not an amount"):
        amount(value, "max_cost")


def test_what_is_an_amount() -> None:
    assert to_nano(2) == 2_000_000_000
    assert to_nano(Decimal("0.1")) == 100_000_000
    assert to_nano(Cost(5)) == 5
    assert amount("0.10", "x") == 100_000_000


def test_sums_keep_what_both_agree_on() -> None:
    total = Cost(1, "USD", "p1") + Cost(2, None, "p1", settled=False)
    assert total == Cost(3, "USD", "p1", settled=False)
    assert (Cost(1, price="a") + Cost(1, price="b")).price is None
    with pytest.raises(ValueError, match="cannot add EUR to USD"):
        Cost(1, "USD") + Cost(1, "EUR")

"""Prices in a config: flat rates, tiers and a minimum become what the ledger's commands take."""

from decimal import Decimal

import pytest
from headgate_gateway.domain.pricing import parse_quote
from headgate_gateway.settings import Price
from pydantic import ValidationError


def test_tiers_and_a_minimum_are_quoted_as_commands_take_them() -> None:
    price = Price.model_validate(
        {
            "input": Decimal("1.25"), "output": 10, "minimum": Decimal("0.0001"),
            "context": [{"above": 200_000, "input": Decimal("2.50"), "output": 15}],
        }
    )  # fmt: skip
    assert price.rates() == {
        "input": "1.25", "output": "10", "minimum": "0.0001",
        "context": ({"above": 200_000, "input": "2.50", "output": "15"},),
    }  # fmt: skip
    terms = parse_quote(price.rates())
    assert (terms.by, terms.tiers[0].above, terms.minimum) == ("context", 200_000, 100_000)


def test_a_tier_says_above_what() -> None:
    with pytest.raises(ValidationError, match="above"):
        Price.model_validate({"input": 1, "graduated": [{"input": 1}]})

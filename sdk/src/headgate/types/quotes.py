"""What a request would cost at most, before it is made."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from headgate._core.money import Cost
from headgate.types.shared import Answer


class Quote(Answer):
    """An upper bound; nothing is held for it.

    Attributes:
        model: The model.
        price: The price version that it was made with.
        upper: The most that the request can cost, a decimal string; None for a model without a price.
        bound: The most that it can use, by dimension: `input`, `output`, `requests`, ...
        rates: The price's rates, decimal strings: tokens per million.
        max_output_tokens: The output limit that it would run with, per choice.
    """

    object: str = "quote"
    model: str = ""
    price: str | None = None
    upper: str | None = None
    bound: dict[str, int] = Field(default_factory=dict[str, int])
    rates: dict[str, Any] = Field(default_factory=dict[str, Any])
    max_output_tokens: int | None = None

    @property
    def most(self) -> Cost | None:
        """The upper bound as an amount."""
        return Cost.parse(self.upper, price=self.price, settled=False)

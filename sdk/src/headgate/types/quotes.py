"""What a request would cost at most, before it is made."""

from __future__ import annotations

from headgate._core.money import Cost
from headgate.types.shared import Answer


class Quote(Answer):
    """An upper bound; nothing is held for it.

    Attributes:
        model: The model.
        price: The price version that it was made with.
        upper: The most that the request can cost, a decimal string; None for a model without a price.
    """

    model: str = ""
    price: str | None = None
    upper: str | None = None

    @property
    def most(self) -> Cost | None:
        """The upper bound as an amount."""
        return Cost.parse(self.upper, price=self.price, settled=False)

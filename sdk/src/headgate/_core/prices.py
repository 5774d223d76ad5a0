"""What the client knows of prices: enough to say what a request could cost at most. Pure; whole nano-units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headgate._core.money import to_nano

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """A model's price, in nano-units.

    Attributes:
        input: Per million tokens that go in.
        output: Per million tokens that come out.
        request: Per request.
        minimum: What a request costs at least.
    """

    input: int = 0
    output: int = 0
    request: int = 0
    minimum: int = 0

    @classmethod
    def parse(cls, price: Mapping[str, Any] | None) -> ModelPrice | None:
        """Read the gateway's `price` table; None where it has none or names what is not understood here."""
        if not price:
            return None
        found = {name: to_nano(value) for name, value in price.items() if value is not None}
        rates = [found.get(name) for name in ("input", "cache_write")]
        if None in found.values():
            return None
        return cls(
            max((rate for rate in rates if rate is not None), default=0),
            max(found.get(name) or 0 for name in ("output", "reasoning")),
            found.get("request") or 0,
            found.get("minimum") or 0,
        )

    def cost(self, tokens_in: int, tokens_out: int) -> int:
        """What so many tokens cost, rounded up."""
        product = tokens_in * self.input + tokens_out * self.output
        return max(self.minimum, self.request + -(-product // _MILLION))


@dataclass(frozen=True, slots=True)
class Upper:
    """The most that a request can use: None where nobody can say.

    Attributes:
        tokens: In and out.
        nano: Their price.
    """

    tokens: int
    nano: int | None
    price: ModelPrice | None
    tokens_in: int


def upper(body: bytes, asked: int | None, choices: int, price: ModelPrice | None) -> Upper:
    """The upper bound of a request from its bytes and its output limit; an unset limit counts as nothing yet."""
    tokens_in = len(body)
    tokens_out = (asked or 0) * max(1, choices)
    nano = None if price is None else price.cost(tokens_in, tokens_out)
    return Upper(tokens_in + tokens_out, nano, price, tokens_in)

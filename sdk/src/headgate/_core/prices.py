"""What the client knows of prices: enough to say what a request could cost at most. Pure; whole nano-units.

The rules are the gateway's (docs/ledger.md, Prices): tiers by context or graduated, a minimum per request.
Imports the core's money.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from headgate._core.money import to_nano

_MILLION = 1_000_000
_KEEP_S = 300.0
_ASK_AGAIN_S = 5.0
_INPUT = ("input", "cache_read", "cache_write")
_OUTPUT = ("output", "reasoning")
_NO_RATES = frozenset({"context", "graduated", "above", "minimum"})
_SPECIALS = 8
"""Tokens that a template may put around each text, beyond what its JSON already counts for."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Rates of a request's tokens beyond a threshold, in nano-units.

    Attributes:
        above: The threshold, in tokens.
        input: Per million tokens that go in, at the dearest that one can become.
        output: The same for those that come out.
        request: Per request.
    """

    above: int
    input: int
    output: int
    request: int


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """A model's price.

    Attributes:
        tiers: At least one, the first from nothing on, thresholds rising.
        graduated: Whether a tier prices the tokens beyond its threshold, or the whole request that is beyond it.
        minimum: Nano-units that a request costs at least.
    """

    tiers: tuple[Tier, ...]
    graduated: bool = False
    minimum: int = 0

    @classmethod
    def parse(cls, price: Mapping[str, Any] | None) -> ModelPrice | None:
        """Read the gateway's `price` table; None where it has none or names what cannot be bounded here."""
        if not price:
            return None
        tiers: list[Tier] = []
        rates: dict[str, int | None] = {}
        for stretch in (price, *(price.get("graduated") or price.get("context") or ())):
            # A tier keeps the rates that it does not name.
            rates |= {name: to_nano(rate) for name, rate in stretch.items() if name not in _NO_RATES}
            found = {name: rate for name, rate in rates.items() if rate is not None}
            if len(found) < len(rates) or found.get("gpu_second"):
                return None
            into, out = (max(found.get(name, 0) for name in names) for names in (_INPUT, _OUTPUT))
            tiers.append(Tier(stretch.get("above", 0), into, out, found.get("request", 0)))
        return cls(tuple(tiers), bool(price.get("graduated")), to_nano(price.get("minimum")) or 0)

    def cost(self, tokens_in: int, tokens_out: int) -> int:
        """The most that a request with so many tokens costs, rounded up.

        Whether a token is cached or thought shows afterwards, and each kind has its thresholds to itself: so all
        tokens count at the dearest tier within reach.
        """
        into = self._within(tokens_in)
        out, whole = (self._within(tokens_out), self.tiers[:1]) if self.graduated else (into, into)
        dearest_in, dearest_out = max(tier.input for tier in into), max(tier.output for tier in out)
        tokens = -(-(tokens_in * dearest_in + tokens_out * dearest_out) // _MILLION)
        return max(self.minimum, tokens + max(tier.request for tier in whole))

    def _within(self, tokens: int) -> Sequence[Tier]:
        return [tier for tier in self.tiers if tier.above < tokens or not tier.above]


class PriceList:
    """Prices as the gateway listed them for a key; what is older than five minutes is asked for again."""

    def __init__(self) -> None:
        self._prices: dict[str, ModelPrice | None] = {}
        self._until = 0.0

    def knows(self, now: float) -> bool:
        """Whether it may still be believed."""
        return now < self._until

    def learn(self, prices: Mapping[str, ModelPrice | None], now: float) -> None:
        """Take over a whole list, aliases included."""
        self._prices, self._until = dict(prices), now + _KEEP_S

    def missed(self, now: float) -> None:
        """The list could not be had: what is known stays, and nobody asks for a moment."""
        self._until = now + _ASK_AGAIN_S

    def of(self, model: str) -> ModelPrice | None:
        """A model's price; None where it is not known."""
        return self._prices.get(model)


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


def upper(document: Mapping[str, Any], size: int, price: ModelPrice | None) -> Upper:
    """The upper bound of a request; output that it sets no limit to counts as nothing yet.

    Args:
        document: The request.
        size: Its length in bytes: no text has more tokens than that.
        price: What its model costs.
    """
    tokens_in, tokens_out = size + _read_again(document), _written(document)
    nano = None if price is None else price.cost(tokens_in, tokens_out)
    return Upper(tokens_in + tokens_out, nano, price, tokens_in)


def _read_again(document: Mapping[str, Any]) -> int:
    """Tokens beyond the request's bytes: a reranker reads the query again with each document."""
    query = document.get("query")
    if not isinstance(query, str):
        return 0
    return _length(document.get("documents")) * (len(query.encode()) + _SPECIALS)


def _written(document: Mapping[str, Any]) -> int:
    limits = (document.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    asked = next((limit for limit in limits if isinstance(limit, int)), 0)
    return max(0, asked) * max(1, document.get("n") or 1) * max(1, _length(document.get("prompt")))


def _length(value: object) -> int:
    return len(cast("list[Any]", value)) if isinstance(value, list | tuple) else 0

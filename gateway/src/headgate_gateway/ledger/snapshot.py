"""What a worker knows of keys and prices, so that most requests need not ask the ledger. May import domain."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeVar

from headgate_gateway.domain.admission import Principal
from headgate_gateway.domain.price_book import PriceBook
from headgate_gateway.domain.pricing import PriceVersion

KNOWN: Final = 20_000
UNKNOWN: Final = 20_000

K = TypeVar("K")
V = TypeVar("V")


class Keys:
    """Keys that the ledger knew, and digests that it did not, until it says that something changed.

    Attributes:
        generation: Grows with every change; an answer that was asked for before one must not be kept.
    """

    def __init__(self) -> None:
        # By a plain hash of what was presented: the keyed digest costs several times as much, on every request.
        self._known: OrderedDict[bytes, tuple[Principal, int]] = OrderedDict()
        self._unknown: OrderedDict[bytes, None] = OrderedDict()
        self.generation = 0

    def find(self, mark: bytes) -> tuple[Principal, int] | None:
        """Who a key with this hash speaks for, and until when (microseconds UTC)."""
        found = self._known.get(mark)
        if found is not None:
            self._known.move_to_end(mark)
        return found

    def is_unknown(self, digest: bytes) -> bool:
        """Whether the ledger said that it knows no such key."""
        return digest in self._unknown

    def keep(self, mark: bytes, principal: Principal, until_us: int) -> None:
        """Remember a key."""
        _remember(self._known, mark, (principal, until_us), KNOWN)

    def keep_unknown(self, digest: bytes) -> None:
        """Remember that there is no such key."""
        _remember(self._unknown, digest, None, UNKNOWN)

    def forget(self, key_ids: list[str] | None) -> None:
        """These keys changed (None: any may have)."""
        self.generation += 1
        self._unknown.clear()
        if key_ids is None:
            self._known.clear()
            return
        for mark in [m for m, (principal, _) in self._known.items() if principal.key_id in key_ids]:
            del self._known[mark]


class Prices:
    """The prices in force and ahead."""

    def __init__(self) -> None:
        self._book = PriceBook()

    def take(self, versions: list[PriceVersion]) -> None:
        """These are in force or planned, see `PriceBook.ahead`."""
        self._book = PriceBook(versions)

    def find(self, principal: Principal, model: str, now_us: int) -> PriceVersion | None:
        """The price in force, see `PriceBook.find`."""
        self._book.advance(now_us)
        return self._book.find(principal.key_id, principal.organization_id, model)


def _remember(cache: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > most:
        cache.popitem(last=False)

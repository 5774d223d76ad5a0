"""The price versions of a history, for the audit: what each charges, and which one a request had to pin.

Shares nothing with `domain.price_book`, on purpose. May import repricing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from headgate_gateway.ledger.repricing import Repriced

_FREE: Final = Repriced("{}")
DEFAULTS: Final = ("config", "plugin")
"""Sources that stand aside for all others; of one place, the last of either is in force."""


class PriceHistory:
    """Every price version, in the order in which they were made."""

    def __init__(self) -> None:
        self._versions: dict[str, Repriced] = {}
        self._places: dict[tuple[str, str, bool], list[tuple[int, str | None]]] = defaultdict(list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row of `prices`; one that is known already changes nothing."""
        if row["id"] in self._versions:
            return
        version = self._versions[row["id"]] = Repriced(row["rates"])
        place = (row["scope"], row["model"], row["source"] in DEFAULTS)
        insort(self._places[place], (row["at_us"], row["id"] if version.charges else None), key=_begins)

    def find(self, price: str | None) -> Repriced | None:
        """What a version charges; None for one that is not in the history."""
        return _FREE if price is None else self._versions.get(price)

    def due(self, key: str, organization: str, model: str, at_us: int) -> set[str | None]:
        """What a request admitted at a moment may have pinned, None for nothing.

        That is one version, but for those that begin in the very microsecond of the admission.
        """
        due: set[str | None] = set()
        for place in ((key, model, False), (organization, model, False), ("", model, False), ("", model, True)):
            found = self._at(self._places.get(place, []), at_us)
            due |= found - {None}
            if None not in found:
                return due
        return due | {None}

    def _at(self, versions: list[tuple[int, str | None]], at_us: int) -> set[str | None]:
        first = bisect_left(versions, at_us, key=_begins)
        last = bisect_right(versions, at_us, key=_begins)
        return {versions[first - 1][1] if first else None, *(id_ for _, id_ in versions[first:last])}


def _begins(version: tuple[int, str | None]) -> int:
    return version[0]

"""What requests cost, worked out a second time for the audit: in fractions, unit by unit, from the stored terms.

Shares no arithmetic with `domain.pricing`, on purpose. Imports nothing of ours but the names of the dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import msgspec
from headgate_plugin_api import DIMENSIONS

_STANDS_IN: Final = {"cache_read": "input", "cache_write": "input", "reasoning": "output"}
_INPUTS: Final = ("input", "cache_read", "cache_write")
_OUTPUTS: Final = ("output", "reasoning")
_FREE: Final = Fraction(0)


class Repriced:
    """One price version, as its row says.

    Args:
        stored: The `rates` column of the row, JSON.
    """

    def __init__(self, stored: str) -> None:
        terms: dict[str, Any] = msgspec.json.decode(stored)
        self._minimum = Fraction(terms.get("minimum", 0))
        self._graduated = terms.get("by", "context") == "graduated"
        rates = {name: Fraction(nano, per) for name, (nano, per) in terms.get("rates", {}).items()}
        self._bands = [(0, rates)]
        for above, changed in terms.get("tiers", ()):
            rates = rates | {name: Fraction(nano, per) for name, (nano, per) in changed.items()}
            self._bands.append((above, rates))
        self.charges = bool(self._bands[0][1])
        """Whether it has rates at all; a version without withdraws the price."""

    def cost(self, usage: Mapping[str, int]) -> Fraction:
        """What usage costs, exactly, in nano-units."""
        context = sum(usage[name] for name in _INPUTS)
        total = sum((self._of(name, usage[name], context) for name in DIMENSIONS), _FREE)
        return max(total, self._minimum) if any(usage[name] for name in DIMENSIONS) else total

    def _of(self, name: str, count: int, context: int) -> Fraction:
        if not self._graduated:
            return count * self._rate(name, [band for band in self._bands if band[0] < max(context, 1)][-1][1])
        total, left = _FREE, count
        for above, rates in reversed(self._bands):
            beyond = max(0, left - above)
            total += beyond * self._rate(name, rates)
            left -= beyond
        return total

    def dearest(self, bound: Sequence[int]) -> Fraction:
        """What usage within a bound can cost at most, whatever its tokens become.

        With tiers, every token is taken at the dearest rate of those that the input can reach, and graduated
        output at the dearest of all.
        """
        counts = dict(zip(DIMENSIONS, bound, strict=True))
        context = sum(counts[name] for name in _INPUTS)
        fixed = _FREE
        for name in DIMENSIONS:
            if name not in _OUTPUTS and counts[name]:
                family = _INPUTS if name in _INPUTS else (name,)
                units = context if name in _INPUTS else counts[name]
                reach = units if self._graduated else context
                fixed += counts[name] * self._top(family, reach)
        step = self._top(_OUTPUTS, None if self._graduated else context)
        return max(fixed, self._minimum) + counts["output"] * step

    def _top(self, family: Sequence[str], reach: int | None) -> Fraction:
        return max(
            self._rate(name, rates)
            for above, rates in self._bands
            if reach is None or above < max(reach, 1)
            for name in family
        )

    def _rate(self, name: str, rates: Mapping[str, Fraction]) -> Fraction:
        return rates.get(name, rates.get(_STANDS_IN.get(name, name), _FREE))

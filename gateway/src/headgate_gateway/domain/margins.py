"""Margins: prices that stand so many percent above (or below) another. May import money and pricing.

A margin is resolved into rates when a version is made: the version itself says what is charged, to the nano-unit,
and remembers the margin so that it is made anew when the price beneath it changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from headgate_gateway.domain import money
from headgate_gateway.domain.admission import Nano
from headgate_gateway.domain.pricing import InvalidPrice, Rate, Rates, Terms, half_even

WHOLE: Final = 1_000_000
"""A margin is a count of these parts of the price beneath: 20 percent are 200,000."""

MOST: Final = 100 * WHOLE
_PERCENT: Final = WHOLE // 100
_DECIMALS: Final = 4
_TEXT: Final = re.compile(r"([+-]?)(\d{1,5})(?:\.(\d{1,4}))?%?", re.ASCII)


def parse_margin(text: object) -> int:
    """Percent as a decimal text with at most 4 places (`20`, `+12.5`, `-10`, a `%` behind it or not), in parts.

    Raises:
        InvalidPrice: It is no such text, or not from -100 to 10000.
    """
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidPrice(f"a margin is percent as a decimal text such as 20 or -12.5, not {text!r}")
    parts = int(match[2]) * _PERCENT + int((match[3] or "").ljust(_DECIMALS, "0"))
    parts = -parts if match[1] == "-" else parts
    if not -WHOLE <= parts <= MOST:
        raise InvalidPrice(f"a margin is from -100 to {MOST // _PERCENT} percent, not {text}")
    return parts


def format_margin(parts: int) -> str:
    """A margin as `parse_margin` reads it."""
    whole, fraction = divmod(abs(parts), _PERCENT)
    text = f"{whole}.{fraction:04d}".rstrip("0").rstrip(".")
    return f"-{text}" if parts < 0 else text


def with_margin(terms: Terms, parts: int) -> Terms:
    """Terms so many parts above others: each amount rounded half-even to a nano-unit, once.

    Raises:
        InvalidPrice: An amount would be beyond what can be kept.
    """
    return msgspec.structs.replace(
        terms,
        rates=_rates(terms.rates, parts),
        tiers=tuple(msgspec.structs.replace(tier, rates=_rates(tier.rates, parts)) for tier in terms.tiers),
        minimum=_amount(terms.minimum, parts),
        margin=parts,
    )


def _rates(rates: Rates, parts: int) -> Rates:
    return {dimension: Rate(_amount(rate.nano, parts), rate.per) for dimension, rate in rates.items()}


def _amount(nano: Nano, parts: int) -> Nano:
    amount = half_even(nano * (WHOLE + parts), WHOLE)
    if amount > money.MAX:
        raise InvalidPrice("the price with its margin is beyond what can be kept")
    return amount


def margin_of(quoted: Mapping[str, Any] | None) -> int | None:
    """The margin that a `Quote` states instead of rates, if it does.

    Raises:
        InvalidPrice: It is none, or there are rates beside it.
    """
    if quoted is None or "margin" not in quoted:
        return None
    if len(quoted) > 1:
        raise InvalidPrice("a margin is on the price beneath it; state no rates beside it")
    return parse_margin(quoted["margin"])

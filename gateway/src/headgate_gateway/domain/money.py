"""Money: signed 64-bit integers of nano-units (1e-9) of one currency. May import admission."""

from __future__ import annotations

import re
from typing import Final

from headgate_gateway.domain.admission import Nano

UNIT: Final = 1_000_000_000
"""Nano-units in one unit of the currency."""

MAX: Final = 2**63 - 1
"""The largest amount that a store can keep."""

_DECIMALS: Final = 9
_AMOUNT: Final = re.compile(r"([+-]?)(\d{1,10})(?:\.(\d+))?", re.ASCII)


class InvalidAmount(ValueError):
    """A text is not an exact amount of money; the message says why and what was expected."""


def parse_amount(text: str) -> Nano:
    """An amount written as a plain decimal, exactly.

    Args:
        text: For example `1`, `0.001`, `-2.50`; no exponent, no spaces, at most 9 decimals.

    Raises:
        InvalidAmount: It is not such a text, has more than 9 decimals, or is beyond 64 bits.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise InvalidAmount(f"{text[:40]!r} is not an amount; expected a plain decimal such as 0.15")
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    if len(fraction) > _DECIMALS:
        raise InvalidAmount(f"{text[:40]!r} has more than {_DECIMALS} decimals; amounts are kept in 1e-9 units")
    nano = int(whole) * UNIT + int(fraction.ljust(_DECIMALS, "0"))
    if nano > MAX:
        raise InvalidAmount(f"{text[:40]!r} is too large; the largest amount is {format_amount(MAX)}")
    return -nano if sign == "-" else nano


def format_amount(nano: Nano) -> str:
    """An amount as a plain decimal: no exponent, trailing zeros trimmed, `0` for nothing."""
    whole, fraction = divmod(abs(nano), UNIT)
    if not fraction:
        return str(-whole if nano < 0 else whole)
    text = f"{whole}.{str(UNIT + fraction)[1:].rstrip('0')}"
    return f"-{text}" if nano < 0 else text

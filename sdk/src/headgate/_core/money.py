"""Money: whole nano-units of the deployment's one currency, never a float. Imports the standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, localcontext

NANO = 1_000_000_000
_LARGEST = 2**63 - 1

# What a gateway writes, read without a Decimal: several times faster, and every answer has one.
_PLAIN = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True, order=True)
class Cost:
    """An exact amount.

    Attributes:
        nano: The amount in nano-units (1e-9).
        currency: ISO code if the gateway names one; a deployment has exactly one currency.
        price: The price version that it was made with, if known.
        settled: True if the ledger has it, False for the client's own estimate.
    """

    nano: int
    currency: str | None = None
    price: str | None = None
    settled: bool = True

    @property
    def amount(self) -> Decimal:
        """The amount in whole units, exact."""
        with localcontext() as context:
            context.prec = 40
            return Decimal(self.nano).scaleb(-9)

    @classmethod
    def parse(
        cls,
        value: object,
        *,
        currency: str | None = None,
        price: str | None = None,
        settled: bool = True,
    ) -> Cost | None:
        """Read a decimal string (or an int of whole units); None for anything that is not an amount."""
        nano = to_nano(value)
        return None if nano is None else cls(nano, currency, price, settled)

    def __add__(self, other: Cost) -> Cost:
        """Sum of two amounts of one currency."""
        if self.currency and other.currency and self.currency != other.currency:
            raise ValueError(f"cannot add {other.currency} to {self.currency}")
        return Cost(
            self.nano + other.nano,
            self.currency or other.currency,
            self.price if self.price == other.price else None,
            self.settled and other.settled,
        )

    def __str__(self) -> str:
        """A plain decimal: `0.00042`."""
        return format_nano(self.nano)


def format_nano(nano: int) -> str:
    """Nano-units as a plain decimal string without exponent or trailing zeros."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")


def to_nano(value: object) -> int | None:
    """An amount as nano-units; None if it is no amount, is finer than a nano-unit or leaves 64 bits."""
    if type(value) is str and (plain := _PLAIN(value)) is not None:
        whole, part = plain.groups(default="")
        return int(whole) * NANO + int(part.ljust(9, "0"))
    if isinstance(value, Cost):
        return value.nano
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        return None
    try:
        with localcontext() as context:
            context.prec = 60
            scaled = Decimal(value).scaleb(9)
            if not scaled.is_finite() or abs(scaled) > _LARGEST or scaled != scaled.to_integral_value():
                return None
            return int(scaled)
    except InvalidOperation:
        return None


def amount(value: object, name: str) -> int:
    """An amount that a caller gave, as nano-units.

    Raises:
        ValueError: It is not a decimal string, int or Decimal with at most 9 decimals.
    """
    nano = to_nano(value)
    if nano is None:
        raise ValueError(f'{name}: {value!r} is not an amount; expected a decimal string such as "0.10"')
    return nano

"""Ids: a typed prefix and a UUIDv7 in Crockford's base32, so that ids sort by the time they were made.

May import clock.
"""

from __future__ import annotations

import random as _random
from typing import Final

from headgate_gateway.domain.clock import Clock

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS: Final = 26
"""Base32 digits of 128 bits; the first one carries only three of them."""

_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
"""Two digits at a time: an id is made for every request, so it is worth a table."""


def encode(number: int) -> str:
    """128 bits as 26 digits that sort like the number."""
    pairs, high, low = _PAIRS, number >> 60, number & 0xFFF_FFFF_FFFF_FFFF
    return (
        f"{pairs[high >> 60]}{pairs[high >> 50 & 1023]}{pairs[high >> 40 & 1023]}{pairs[high >> 30 & 1023]}"
        f"{pairs[high >> 20 & 1023]}{pairs[high >> 10 & 1023]}{pairs[high & 1023]}{pairs[low >> 50]}"
        f"{pairs[low >> 40 & 1023]}{pairs[low >> 30 & 1023]}{pairs[low >> 20 & 1023]}{pairs[low >> 10 & 1023]}"
        f"{pairs[low & 1023]}"
    )


def new_id(prefix: str, clock: Clock, random: _random.Random) -> str:
    """A fresh id such as `req_01jd9x...`: prefix, underscore, 26 url-safe characters.

    Args:
        prefix: What it names: `req`, `key`, `prj`, `org`, `prc`.
        clock: Gives the 48 bits of milliseconds that come first.
        random: Gives the 74 bits that follow.
    """
    milliseconds = clock.now_us() // 1000 & 0xFFFF_FFFF_FFFF
    noise = random.getrandbits(74)
    number = milliseconds << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62 | noise & ((1 << 62) - 1)
    return f"{prefix}_{encode(number)}"


class IdSource:
    """Makes ids from one clock and one source of randomness.

    Args:
        clock: The time in the ids.
        random: The noise in them; seeded in tests, `random.SystemRandom` or a process's own generator else.
    """

    def __init__(self, clock: Clock, random: _random.Random) -> None:
        self._clock = clock
        self._random = random

    def new(self, prefix: str) -> str:
        """An id with any prefix."""
        return new_id(prefix, self._clock, self._random)

    def request(self) -> str:
        """`req_...`."""
        return self.new("req")

    def key(self) -> str:
        """`key_...`."""
        return self.new("key")

    def project(self) -> str:
        """`prj_...`."""
        return self.new("prj")

    def organization(self) -> str:
        """`org_...`."""
        return self.new("org")

    def price(self) -> str:
        """`prc_...`."""
        return self.new("prc")

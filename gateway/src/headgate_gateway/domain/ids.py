"""Ids: a typed prefix and a UUIDv7 in Crockford's base32, so that ids sort by the time they were made.

May import clock.
"""

from __future__ import annotations

import random as _random
from functools import lru_cache
from typing import Final

from headgate_gateway.domain.clock import Clock

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"

_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
"""Two digits at a time: an id is made for every request, so it is worth a table."""

_TAIL: Final = 16
"""Digits after the ten of the time. Each is made of the lower five bits of a byte."""

_DIGITS: Final = bytes(ord(_ALPHABET[byte % 32]) for byte in range(256))
_FIXED: Final = 0b01110 << 8 * 15 | 0b01000 << 8 * 12
_FREE: Final = (1 << 8 * 15 + 1) - 1 ^ 0b01100 << 8 * 12
"""What is the same in the tail of every UUIDv7, its version and its variant, and what may be noise."""


def new_id(prefix: str, clock: Clock, random: _random.Random) -> str:
    """A fresh id such as `req_01jd9x...`: prefix, underscore, 26 url-safe characters.

    Args:
        prefix: What it names: `req`, `key`, `prj`, `org`, `prc`.
        clock: Gives the 48 bits of milliseconds that come first.
        random: Gives the 74 bits that follow.
    """
    time = clock.now_us() // 1000
    noise = (random.getrandbits(8 * _TAIL) & _FREE | _FIXED).to_bytes(_TAIL, "big").translate(_DIGITS).decode()
    return f"{prefix}_{_beginning(time >> 10)}{_PAIRS[time & 1023]}{noise}"


@lru_cache(maxsize=2)
def _beginning(time: int) -> str:
    """The digits of the time without the last two: they are the same for 1,024 milliseconds."""
    return _PAIRS[time >> 30 & 255] + "".join(_PAIRS[time >> place & 1023] for place in (20, 10, 0))


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
        return new_id("req", self._clock, self._random)

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

    def salt(self) -> bytes:
        """16 bytes of noise."""
        return self._random.randbytes(16)

"""API keys: their form, and the digest that a store keeps instead of them. Imports nothing of ours."""

from __future__ import annotations

import hmac
import random as _random
import re
import string
import zlib
from typing import Final

_BASE62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET: Final = 30
_CHECK: Final = 6
_FORM: Final = re.compile(rf"hg_[0-9A-Za-z]{{{_SECRET}}}_[0-9A-Za-z]{{{_CHECK}}}", re.ASCII)

PREFIX_LENGTH: Final = 9
"""Characters of a key that lists may show, so that people recognise it."""


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits: list[str] = []
    for _ in range(_CHECK):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def generate_key(random: _random.Random) -> str:
    """A fresh key, `hg_<30 base62>_<6 base62 of the CRC32>`: 178 bits of secret.

    Args:
        random: `random.SystemRandom()` wherever the key is meant to be one.
    """
    body = "hg_" + "".join(random.choices(_BASE62, k=_SECRET))
    return f"{body}_{_checksum(body)}"


def well_formed(key: str) -> bool:
    """Whether a text has the form and checksum of a key. The checksum is public: it proves no right."""
    if _FORM.fullmatch(key) is None:
        return False
    body, _, checksum = key.rpartition("_")
    return _checksum(body) == checksum


def digest(key: str, pepper: bytes) -> bytes:
    """HMAC-SHA-256 of a key under a pepper that is kept outside the store; 32 bytes."""
    return hmac.digest(pepper, key.encode("utf-8", "surrogatepass"), "sha256")

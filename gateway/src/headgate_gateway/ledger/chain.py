"""The hash chain over everything that is only ever added. Imports rows.

Each row keeps a digest of its own, so that a changed row is named; each batch keeps one link, an HMAC over the
link before it, the batch's facts and its rows' digests, so that no row can be added, left out or moved by whoever
does not have the key. The key comes from the pepper, which lies outside the store.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any

import msgspec

_ENCODER = msgspec.msgpack.Encoder()


def row_digest(row: tuple[Any, ...]) -> bytes:
    """The digest of a row's values, 16 bytes."""
    return hashlib.blake2b(_ENCODER.encode(row), digest_size=16).digest()


def chain_key(pepper: bytes) -> bytes:
    """The key of the chain."""
    return hmac.digest(pepper, b"headgate chain 1", "sha256")


def next_link(key: bytes, before: bytes, facts: tuple[int, ...], digests: Iterable[bytes]) -> bytes:
    """The link of a batch, 32 bytes.

    Args:
        key: From `chain_key`.
        before: The link of the batch before, empty for the first.
        facts: Number, time, and how many requests were admitted, extended, recorded and voided.
        digests: Of its rows, in their order.
    """
    return hmac.digest(key, _ENCODER.encode((before, facts)) + b"".join(digests), "sha256")

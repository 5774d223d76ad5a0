"""How structs become bytes inside a row: MessagePack, one encoder for all. Imports nothing of ours."""

from __future__ import annotations

import msgspec

_ENCODER = msgspec.msgpack.Encoder()

pack = _ENCODER.encode
"""Bytes of any struct; deterministic for equal values."""

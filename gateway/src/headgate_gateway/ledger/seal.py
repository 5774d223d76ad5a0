"""Seals: what a derivation came to at one moment, written down so that a later audit can begin there.

A seal is made by an audit that found nothing wrong and kept by the ledger like any other history: its rows are
append-only and covered by the chain's links. Each has an HMAC of its own besides, so that a seal can be believed
before the links around it have been followed. It says where every chain stood and what every window had come to
that can still change. May import chain and packing.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headgate_gateway.domain.keeping import KeepSeal
from headgate_gateway.ledger.packing import pack

PART: Final = 1000
"""Windows, limits or prices in one part of a seal. Each part is a batch, which others must not wait for."""


class Place(msgspec.Struct, array_like=True):
    """Where a chain stood.

    Attributes:
        number: Its last link's.
        link: The last link.
        seq: The number of its last usage record.
        rows: The last row of each of its tables.
    """

    number: int
    link: bytes
    seq: int
    rows: dict[str, int]


class SealedWindow(msgspec.Struct, array_like=True):
    """What a window had come to at one of its versions.

    `open` are the changes (version, amount, request id) among those counted that belong to holds which were open:
    their records, which come later, name these versions again.
    """

    id: int
    account: str
    kind: str
    limit_id: int
    end_us: int
    version: int
    limit: int
    hard: bool
    held: int
    spent: int
    open: list[tuple[int, int, str]]


class Seal(msgspec.Struct, array_like=True):
    """What a derivation came to.

    Attributes:
        at_us: The last link's time.
        open: Requests that were open.
        steps: Extensions that their holds had.
        places: Where each chain stood.
        marks: (time, last record of each chain) of the seals before this one, back to the first that is old
            enough: no request before it can share a living idempotency key with one after this seal.
        prices: Rows of `prices` that a request which ends later may have pinned.
        limits: Rows of `limits` that were in force.
        windows: Those that can still change.
        personal: See `PersonalAudit.ended`; None in a seal of before there was such a thing.
    """

    at_us: int
    open: int
    steps: int
    places: dict[int, Place]
    marks: list[tuple[int, dict[int, int]]]
    prices: list[tuple[Any, ...]]
    limits: list[tuple[Any, ...]]
    windows: list[SealedWindow]
    personal: int | None = None


@dataclass(frozen=True)
class SealRow:
    """A row of `seals`, without what the chain adds."""

    seal: int
    part: int
    parts: int
    body: bytes
    mac: bytes


_SEAL: Final = msgspec.msgpack.Decoder(Seal)


def parts_of(seal: Seal, number: int, key: bytes) -> Iterator[KeepSeal]:
    """The commands that make the ledger keep a seal.

    Args:
        seal: What to keep.
        number: Which seal it is, counted from 1.
        key: From `chain.chain_key`.
    """
    bodies = [pack(msgspec.structs.replace(seal, prices=[], limits=[], windows=[]))]
    for name in ("prices", "limits", "windows"):
        rows = getattr(seal, name)
        for start in range(0, len(rows), PART):
            part = Seal(seal.at_us, 0, 0, {}, [], [], [], [])
            setattr(part, name, rows[start : start + PART])
            bodies.append(pack(part))
    for n, body in enumerate(bodies):
        yield KeepSeal(
            seal=number, part=n, parts=len(bodies), body=body, mac=_mac(key, number, n, len(bodies), body)
        )


def joined(rows: Sequence[SealRow], key: bytes) -> Seal | None:
    """The seal that its rows, in order, are parts of; None where one is missing or was changed."""
    if [row.part for row in rows] != list(range(rows[0].parts if rows else 1)):
        return None
    for row in rows:
        if not hmac.compare_digest(row.mac, _mac(key, row.seal, row.part, len(rows), row.body)):
            return None
    seal, *others = (_SEAL.decode(row.body) for row in rows)
    for part in others:
        seal.prices += part.prices
        seal.limits += part.limits
        seal.windows += part.windows
    return seal


def sequences(places: Mapping[int, Place]) -> dict[int, int]:
    """The number of each chain's last record."""
    return {chain: place.seq for chain, place in places.items()}


def _mac(key: bytes, *facts: int | bytes) -> bytes:
    return hmac.digest(key, b"headgate seal 1" + pack(facts), "sha256")

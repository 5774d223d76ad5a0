"""The columns of append-only tables, in the order that writers, readers and digests share. Imports nothing."""

from __future__ import annotations

from typing import Final, NamedTuple

Columns = tuple[str, ...]
RECORD: Final[Columns] = (
    "seq", "batch", "request_id", "organization_id", "project_id", "key_id", "model", "task", "backend",
    "outcome", "source", "input", "cache_read", "cache_write", "output", "reasoning", "images", "audio_ms",
    "requests", "gpu_ms", "price", "held", "cost", "overrun", "billed", "flagged", "admitted_us", "first_byte_us",
    "finished_us", "claim", "detail",
)  # fmt: skip
"""A usage record. `detail` is a packed `Detail`; `flagged` marks one that wants reconciliation."""

VOID: Final[Columns] = ("batch", "request_id", "key_id", "at_us", "detail")
"""A request that was admitted and never dispatched."""

PRICE: Final[Columns] = ("id", "batch", "model", "scope", "source", "rates", "at_us")
"""A price version; `rates` is JSON (empty where it withdraws the price) and `at_us` when it begins: when it was
made, its batch's link says."""

LIMIT: Final[Columns] = (
    "id",
    "batch",
    "account",
    "kind",
    "amount",
    "hard",
    "timezone",
    "at_us",
    "window_id",
    "window_version",
)
"""A limit from one moment on; `amount` NULL lifts it. `window_id` and `window_version` say where in a window that
was open already it came into force."""

ENTRY: Final[Columns] = ("id", "batch", "at_us", "actor", "action", "target", "detail")
"""An administrative action; `detail` is JSON."""

SEAL: Final[Columns] = ("batch", "seal", "part", "parts", "at_us", "body", "mac")
"""A part of a seal; `body` is packed, `mac` makes it believable by itself, see `seal`."""


class Archive(NamedTuple):
    """What left the store: of one chain, everything up to a seal, into a file.

    Attributes:
        seal: The one that the file ends at.
        covers: The chain.
        until: Its last link that left.
        until_us: The seal's time: no record that left was finished later.
        file: Where the file was written.
        hash: Its SHA-256.
        size: Its bytes.
        row_count: Rows of this chain in it.
        at_us: When its rows were let go.
    """

    batch: int
    seal: int
    covers: int
    until: int
    until_us: int
    file: str
    hash: bytes
    size: int
    row_count: int
    at_us: int


CHAINED: Final[dict[str, Columns]] = {
    "usage_records": RECORD,
    "voids": VOID,
    "prices": PRICE,
    "limits": LIMIT,
    "audit_log": ENTRY,
    "seals": SEAL,
    "archives": Archive._fields,
}
"""Tables that are only ever added to. Each of their rows has a `digest` too, and the chain's links cover them in
the order of this mapping's keys within a batch, by `batch`."""

LEAVING: Final = ("usage_records", "voids", "audit_log", "seals", "links")
"""Tables whose rows leave the store when they are archived. Prices and limits stay: they are few, and what comes
later names them."""

LATE_US: Final = 2 * 3600 * 1_000_000
"""How much earlier than a seal a window may have ended that the seal still has: clocks are set back at times, and
nodes differ. Longer than any request. What ended earlier leaves with what is archived."""

"""Personal fields: what clients say about their users, in a side table, so that it can be erased.

History is only ever added to, so nothing in it can be taken back. What may name people, the tags, therefore never
stands in it: a row beside it has them, written once, when the request is admitted; hold, record and void have
the row's digest only. Each row has a salt of its own, so that once it is gone its digest cannot be guessed back.
Rows are never changed; whoever erases some says in the audit log how many, in the same transaction, so that
those that went silently are missed. May import packing.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from headgate_gateway.ledger.packing import pack

COLUMNS: Final = ("at_us", "request_id", "project", "salt", "fields")
"""Of the table `personal`; its rows' digests are `chain.row_digest`. `at_us` is when the request was admitted."""

ERASURE: Final = "personal.erase"
"""The action in the audit log; `rows` in the entry's detail says how many."""

Place = tuple[int, str]
"""`at_us` and `request_id`: the table's key, so that new rows come last."""


class Fields(msgspec.Struct, array_like=True):
    """What is set aside of one request. Packed into one column."""

    tags: dict[str, str]


_FIELDS: Final = msgspec.msgpack.Decoder(Fields)


def row_of(request_id: str, project: str, at_us: int, salt: bytes, tags: dict[str, str]) -> tuple[Any, ...]:
    """A row, as `COLUMNS` says."""
    return at_us, request_id, project, salt, pack(Fields(tags))


def tags_in(fields: bytes) -> dict[str, str]:
    """The tags in a packed column."""
    return _FIELDS.decode(fields).tags


def rows_erased(action: str, detail: str) -> int:
    """How many rows went with an entry of the audit log."""
    return int(msgspec.json.decode(detail)["rows"]) if action == ERASURE else 0

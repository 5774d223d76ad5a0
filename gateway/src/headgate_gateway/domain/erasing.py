"""What is asked of a ledger, and answered, where personal fields are erased. Imports nothing of ours."""

from __future__ import annotations

from typing import Final

import msgspec

MOST_ERASED: Final = 500
"""Requests of one command: all other batches wait for it."""


class ErasePersonal(msgspec.Struct, frozen=True, kw_only=True, tag="erase_personal"):
    """Erase personal fields of requests, at most `MOST_ERASED` at once; what is not there is passed over.

    What they were chosen by is for the audit log, which must not repeat whom it was about.

    Attributes:
        requests: When each was admitted, microseconds UTC, and its id.
        tags: The names of the tags whose values were asked for.
        project: Its id, where only that project's were meant.
        before: Microseconds UTC, where only those admitted before then were meant.
    """

    requests: tuple[tuple[int, str], ...]
    tags: tuple[str, ...] = ()
    project: str | None = None
    before: int | None = None


class Erased(msgspec.Struct, frozen=True, kw_only=True, tag="erased"):
    """Answer to `ErasePersonal`: of how many requests there was something to be erased."""

    rows: int

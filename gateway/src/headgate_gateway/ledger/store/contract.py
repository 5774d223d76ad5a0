"""What the ledger needs of a store. May import book and wire."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import ClaimRow, Ended, Loaded, Writes
from headgate_gateway.ledger.personal import Place


class StoreFailed(Exception):
    """The store cannot take a batch now: disk full, read-only, connection lost. Nothing of the batch was kept.

    Attributes:
        full: The disk is full; freeing some of it may help at once.
    """

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


class StoreBroken(Exception):
    """A write or a sync failed in the middle: what is on disk is unknown until the file is opened again.

    The process must end; asking the kernel to sync again would get a yes that means nothing.
    """


class StoreRefused(Exception):
    """The store will never take this batch: a row breaks a rule of the schema. Nothing of it was kept."""


class Store(Protocol):
    """Keeps what the ledger commits. Called from one thread; there is one writer.

    Whatever it is asked after `load`, it raises `StoreFailed` or `StoreBroken` where it cannot do it.
    """

    def load(self) -> Loaded:
        """Everything that is kept in memory, as last committed."""
        ...

    def commit(self, writes: Writes, at_us: int) -> None:
        """Write one batch in one transaction; when it returns, the batch survives power loss.

        Args:
            writes: What the batch changes.
            at_us: The batch's time; never before the last one's.

        Raises:
            StoreFailed: It could not be written now.
            StoreRefused: It never can be.
        """
        ...

    def claim(self, project: str, key: str) -> ClaimRow | None:
        """An idempotency claim, expired or not."""
        ...

    def answer(self, request_id: str, now_us: int) -> bytes | None:
        """The document to replay, while it is kept."""
        ...

    def ended(self, request_id: str) -> Ended | None:
        """How a request ended; None when it is open or was never admitted."""
        ...

    def set_aside(self, places: Collection[Place]) -> list[Place]:
        """Those among the places at which there are personal fields."""
        ...

    def prune(self, now_us: int, limit: int) -> int:
        """Delete at most `limit` expired answers and claims; returns how many went."""
        ...

    def sweep(self, limit: int) -> int:
        """Delete at most `limit` rows that were archived; returns how many went."""
        ...

    def advance(self, op: wire.Advance, now_us: int) -> wire.Cursor:
        """Begin or advance the cursor of a consumer of usage records; returns where it is now."""
        ...

    def close(self) -> None:
        """Leave everything on disk in its resting form."""
        ...

"""The ledger without its sockets: runs operations in batches, each one transaction. May import state, store.

A batch that the store cannot take is undone by loading memory again from what was committed; then each of its
operations runs alone, so that only the one at fault is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.admission import Principal, Refused
from headgate_gateway.domain.clock import Clock
from headgate_gateway.domain.commands import Rejected
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.domain.pricing import PriceVersion
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.administration import Administration
from headgate_gateway.ledger.book import Key
from headgate_gateway.ledger.reserve import Reserve
from headgate_gateway.ledger.state import State
from headgate_gateway.ledger.steady import SteadyTime
from headgate_gateway.ledger.store import Store, StoreBroken, StoreFailed, StoreRefused
from headgate_gateway.ledger.tracing import trace

BATCH: Final = 64
"""Operations in one transaction, at most."""

_log = logging.getLogger(__name__)


class Speaker:
    """Who sends operations: a life of a worker, or the command line."""

    __slots__ = ("incarnation", "worker")

    def __init__(self, worker: int = -1, incarnation: str = "") -> None:
        self.worker = worker
        self.incarnation = incarnation


class Core:
    """Runs batches.

    Args:
        store: Where they are committed.
        clock: The time; the ledger's own never runs backwards.
        ids: For what commands make, and for salts.
        reserve: Disk space that is given up when the disk is full, so that what is open can end.

    Attributes:
        full: The disk was found full and the reserve is gone: only what ends requests is carried out.
        usable: Whether the store took what was last tried.
    """

    def __init__(self, store: Store, clock: Clock, ids: IdSource, reserve: Reserve | None = None) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self.state: State
        self._administration: Administration
        self._reserve = reserve
        self.full = False
        self.usable = True
        self.reload()
        self._time = SteadyTime(clock, self.state.head.at_us)

    def reload(self) -> None:
        """Forget memory and take what was last committed."""
        self.state = State(self._store.load(), self._store, self._ids.salt)
        self._administration = Administration(self.state, self._ids)

    def run(self, operations: Sequence[tuple[Speaker, wire.Op]]) -> list[wire.Reply]:
        """Run operations as one transaction; the replies are facts on disk when this returns."""
        if self.full:
            return self._run_full(operations)
        return self._run_safely(operations)

    def _run_safely(self, operations: Sequence[tuple[Speaker, wire.Op]]) -> list[wire.Reply]:
        try:
            return self._run(operations)
        except StoreBroken:
            raise
        except StoreFailed as error:
            _log.error("the store cannot take a batch: %s", error)
            self.usable = False
            self._undo()
            if error.full and self._reserve is not None and self._reserve.free():
                self.full = True
                return self._run_full(operations)
            return [unavailable(op, str(error)) for _, op in operations]
        except Exception as error:  # noqa: BLE001 - whatever one operation does must not fail the others
            _log.exception("a batch of %d operations failed; running each alone", len(operations))
            self._undo()
            if len(operations) == 1:
                return [failed(operations[0][1], error)]
            return [reply for operation in operations for reply in self.run([operation])]

    def _undo(self) -> None:
        try:
            self.reload()
        except Exception as error:
            raise StoreBroken(f"what was committed cannot be read: {error}") from error

    def _run_full(self, operations: Sequence[tuple[Speaker, wire.Op]]) -> list[wire.Reply]:
        """The disk is full: requests that are open end in the space that was reserved; nothing begins."""
        ends = [operation for operation in operations if isinstance(operation[1], wire.Settle | wire.Void)]
        ended = iter(self._run_safely(ends) if ends else ())
        return [
            next(ended) if isinstance(op, wire.Settle | wire.Void) else unavailable(op, "the disk is full")
            for _, op in operations
        ]

    def refill(self) -> None:
        """Take the reserve back when there is room again; then everything is carried out as before."""
        if self.full and self._reserve is not None and self._reserve.fill():
            _log.warning("there is room on the disk again")
            self.full = False
        self.usable = not self.full  # worth another try: while nobody is sent here, nobody finds out

    def _run(self, operations: Sequence[tuple[Speaker, wire.Op]]) -> list[wire.Reply]:
        state = self.state
        state.begin(self._time.now_us())
        state.wall_us = self._clock.now_us()
        replies = [
            wire.Ran(op.n, self._administration.run(op.command, op.actor))
            if isinstance(op, wire.Run)
            else step(state, speaker, op)
            for speaker, op in operations
        ]
        if state.writes:
            reach("ledger.before_commit")
            self._store.commit(state.writes, state.now_us)
            self.usable = not self.full
            reach("ledger.after_commit")
            state.head.batch += 1
            state.head.at_us = state.now_us
        return replies

    # -- reads, answered from memory

    def identify(self, digest: bytes) -> tuple[Principal | None, int | None]:
        """Who a digest speaks for now, and until when."""
        state = self.state
        state.now_us = max(self._time.now_us(), state.head.at_us)
        key = state.digests.get(digest)
        if key is None or not state.alive(key):
            return None, None
        return principal_of(key), key.ends_us

    def trace(self, op: wire.Trace) -> wire.Trail | wire.Denied:
        """What became of the request behind an idempotency key."""
        state = self.state
        state.now_us = max(self._time.now_us(), state.head.at_us)
        return trace(op, state, self._store)

    def advance(self, op: wire.Advance) -> wire.Cursor:
        """Begin or advance the cursor of a consumer of usage records; returns where it is now.

        Raises:
            StoreFailed: It cannot be written now.
        """
        if self.full:
            raise StoreFailed("the disk is full", full=True)
        return self._store.advance(op, self._clock.now_us())

    def prices(self) -> list[PriceVersion]:
        """Every price in force, and what is planned."""
        return self.state.prices.ahead

    def of_incarnation(self, incarnation: str) -> list[str]:
        """Open requests of a life of a worker."""
        return [hold.request_id for hold in self.state.holds.values() if hold.incarnation == incarnation]

    def incarnations(self) -> set[str]:
        """Lives of workers that have open requests."""
        return {hold.incarnation for hold in self.state.holds.values()}

    def prune(self, rows: int) -> int:
        """Delete at most so many expired claims and answers."""
        return self._store.prune(max(self._time.now_us(), self.state.head.at_us), rows)

    def sweep(self, rows: int) -> int:
        """Delete at most so many rows that were archived."""
        return self._store.sweep(rows)

    def close(self) -> None:
        """Leave the store at rest."""
        self._store.close()


def step(state: State, speaker: Speaker, op: wire.Admit | wire.Settle | wire.Extend | wire.Void) -> wire.Reply:
    """Apply one operation on a request to a state."""
    if isinstance(op, wire.Admit):
        state.speaks(speaker.worker, speaker.incarnation)
        return state.admit(op)
    if isinstance(op, wire.Settle):
        return state.settle(op)
    if isinstance(op, wire.Extend):
        return state.extend(op)
    return state.void(op)


def principal_of(key: Key) -> Principal:
    """What a worker may know of a key."""
    return Principal(
        key_id=key.id,
        project_id=key.path[1].id,
        organization_id=key.path[2].id,
        scopes=key.scopes,
        models=key.models,
        max_output=key.max_output,
        budgeted=key.budgeted,
        admin="admin" in key.scopes,
    )


def unavailable(op: wire.Op, message: str) -> wire.Reply:
    """The reply to an operation that the store cannot take at present."""
    if isinstance(op, wire.Admit):
        refused = Refused(
            code="ledger_unavailable", message="the ledger cannot write at present", retry_after_ms=1000
        )
        return wire.Denied(op.n, refused)
    if isinstance(op, wire.Run):
        return wire.Ran(
            op.n, Rejected(code="unavailable", message=f"the ledger cannot write at present: {message}")
        )
    return wire.Failed(op.n, "unavailable", message)


def failed(op: wire.Op, error: Exception) -> wire.Reply:
    """The reply to an operation that was at fault itself."""
    kind = "refused by the store" if isinstance(error, StoreRefused) else "failed"
    if isinstance(op, wire.Run):
        return wire.Ran(op.n, Rejected(code="invalid", message=f"the command {kind}: {error}"))
    return wire.Failed(op.n, "invalid", f"the operation {kind}: {error}")

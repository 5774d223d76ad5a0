"""The core on PostgreSQL: what `ledger.core.Core` is on a store of its own. May import this room's modules.

Operations go to lanes by the hash of their organization; lanes run at the same time, each its own transactions.
Nothing that money depends on is remembered between batches, so any number of nodes may do this on one database.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import psycopg

from headgate_gateway.domain.admission import Principal
from headgate_gateway.domain.clock import Clock
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.domain.pricing import PriceVersion
from headgate_gateway.ledger import cursors, wire
from headgate_gateway.ledger.administration import Administration
from headgate_gateway.ledger.core import BATCH, Speaker, failed, step, unavailable
from headgate_gateway.ledger.flight import ZERO
from headgate_gateway.ledger.history import noted
from headgate_gateway.ledger.postgres import late, pepper, schema
from headgate_gateway.ledger.postgres.lane import Fenced, Lane
from headgate_gateway.ledger.postgres.naming import named
from headgate_gateway.ledger.postgres.node import beat, fence, join, node_id
from headgate_gateway.ledger.postgres.reading import Reader
from headgate_gateway.ledger.postgres.session import Line, connect
from headgate_gateway.ledger.postgres.slices import Directory, Wanted
from headgate_gateway.ledger.postgres.sweeping import sweep
from headgate_gateway.ledger.refusals import sane
from headgate_gateway.ledger.state import State
from headgate_gateway.ledger.store.contract import StoreBroken, StoreFailed, StoreRefused
from headgate_gateway.settings import LONGEST_S

LANES: Final = 4
"""Transactions at the same time; see `queues` for when a second one begins."""

SILENT_S: Final = LONGEST_S + 300
"""A node silent for this long is given up for lost: longer than any request, by five minutes."""

Operation = tuple[Speaker, wire.Op]

_log = logging.getLogger(__name__)


class PostgresCore:
    """Runs batches on PostgreSQL, for one node among others.

    Args:
        url: `postgresql://…`; the database must have been migrated.
        folder: The node's data folder: its id and the heads of its chains lie there.
        key: The chains' key, see `chain.chain_key`; the same on every node.
        clock: For deadlines and waits; the ledger's time is the database's.
        ids: For what commands make, and for salts.
        lanes: Transactions at the same time.
        silent_s: After how long without a heartbeat another node is given up.
        local_time: Take the ledger's time from `clock`: for tests, which move it.

    Raises:
        StoreFailed: The database cannot be reached, or refuses its user.
        WrongSchema: It was not migrated.
        WrongPepper: Its other nodes have another pepper.
    """

    full = False
    usable = True

    def __init__(
        self, url: str, folder: Path, key: bytes, clock: Clock, ids: IdSource, *,
        lanes: int = LANES, silent_s: float = SILENT_S, local_time: bool = False,
    ) -> None:  # fmt: skip
        self._ids = ids
        self._clock = clock
        self._silent_s = silent_s
        with contextlib.closing(connect(url)) as db:
            try:
                schema.check(db)
                schema.check_order(db)
                pepper.recognise(db, key)
                self.node = join(db, node_id(folder / "node.id", f"node_{secrets.token_hex(8)}"), lanes)
            except psycopg.Error as error:  # such as rights that its user lacks
                raise StoreFailed(f"PostgreSQL: {str(error).strip()}") from error
        files = {chain: folder / f"chain-{chain}.head" for chain in self.node.chains}
        heads = {chain: last for chain, file in files.items() if (last := noted(file)) is not None}
        self._lanes = [
            Lane(
                url,
                self.node,
                number,
                key,
                clock,
                files[chain],
                heads,
                ids.salt,
                local_time=local_time,
            )
            for number, chain in enumerate(self.node.chains)
        ]
        self.reader = Reader(url, self.node.id, clock, local_time=local_time)
        self.keeper = Reader(url, self.node.id, clock, local_time=local_time)
        self._keys_of: dict[str, str] = {}
        """Open requests that this process admitted: whose key they are of."""

    @property
    def lanes(self) -> int:
        """How many transactions may run at the same time."""
        return len(self._lanes)

    # -- operations

    def run(self, operations: Sequence[Operation]) -> list[wire.Reply]:
        """Run operations one lane after the other; the replies are facts in the database when this returns.

        A server asks `lane_of` and `run_in_lane` instead, with a thread and a queue for each lane.

        Raises:
            StoreBroken: What is committed is unknown, or the node was shut out: the process must end.
        """
        replies: list[wire.Reply] = []
        for is_command, group in groupby(operations, lambda operation: isinstance(operation[1], wire.Run)):
            if is_command:
                replies += [reply for operation in group for reply in self.run_in_lane(0, [operation])]
            else:
                replies += self._run_requests(list(group))
        return replies

    def _run_requests(self, operations: Sequence[Operation]) -> list[wire.Reply]:
        try:
            self.learn([op for _, op in operations])
        except StoreFailed as error:
            return [unavailable(op, str(error)) for _, op in operations]
        lanes: dict[int, list[int]] = defaultdict(list)
        for place, (_, op) in enumerate(operations):
            lanes[self.lane_of(op) or 0].append(place)
        replies: dict[int, wire.Reply] = {}
        for lane, places in lanes.items():
            replies |= zip(places, self.run_in_lane(lane, [operations[n] for n in places]), strict=True)
        return [replies[n] for n in range(len(operations))]

    def lane_of(self, op: wire.Op) -> int | None:
        """Where an operation is to run: its organization's lane; None where that must be looked up first."""
        if isinstance(op, wire.Run):
            return 0
        if isinstance(op, wire.Admit):
            self._keys_of.setdefault(op.request_id, op.key_id)
        key = self._keys_of.get(op.request_id)
        organization = None if key is None else self.reader.directory.organization(key)
        return None if organization is None else zlib.crc32(organization.encode()) % len(self._lanes)

    def learn(self, ops: Sequence[wire.Op]) -> None:
        """Look up whose operations these are; what is still unknown then may run in any lane.

        Raises:
            StoreFailed: The database cannot be asked.
        """
        named_ = {op.request_id for op in ops if not isinstance(op, wire.Admit | wire.Run)}
        missing = [id_ for id_ in named_ if id_ not in self._keys_of and "\0" not in id_]
        if missing:
            self._keys_of.update(self.reader.keys_of(missing))
        keys = (self._keys_of.get(op.request_id) for op in ops if not isinstance(op, wire.Run | wire.Admit))
        asked = {key for key in keys if key is not None} | {op.key_id for op in ops if isinstance(op, wire.Admit)}
        self.reader.learn(key for key in asked if "\0" not in key)  # no text there can have a NUL

    def run_in_lane(self, number: int, operations: Sequence[Operation]) -> list[wire.Reply]:
        """Run operations in one lane: one command, or requests; in one thread at a time for each lane.

        Raises:
            StoreBroken: What is committed is unknown, or the node was shut out: the process must end.
        """
        if isinstance(operations[0][1], wire.Run):
            return [self._run_command(operations[0][1])]
        replies = self._in_lane(number, operations)
        answered = zip(operations, replies, strict=True)
        self.forget([op for (_, op), reply in answered if not isinstance(reply, wire.Grant | wire.Covered)])
        return replies

    def forget(self, ops: Sequence[wire.Op]) -> None:
        """Keep the keys of what is open, and no others."""
        for op in ops:
            if not isinstance(op, wire.Run):
                self._keys_of.pop(op.request_id, None)

    def _in_lane(self, number: int, operations: Sequence[Operation]) -> list[wire.Reply]:
        lane = self._lanes[number]
        try:
            replies = self._requests(lane, operations)
        except StoreBroken:
            raise
        except StoreFailed as error:
            if not lane.failing:  # said once: callers try again and again
                _log.error("the database cannot take a batch: %s", error)
            lane.failing = True
            return [unavailable(op, str(error)) for _, op in operations]
        except Exception as error:  # noqa: BLE001 - whatever one operation does must not fail the others
            _log.exception("a batch of %d operations failed; running each alone", len(operations))
            if len(operations) == 1:
                return [failed(operations[0][1], error)]
            return [reply for operation in operations for reply in self._in_lane(number, [operation])]
        if lane.failing:
            _log.warning("the database takes batches again")
        lane.failing = False
        return replies

    def _requests(self, lane: Lane, operations: Sequence[Operation]) -> list[wire.Reply]:
        over: list[wire.Settle] = []
        """Settlements with something to bill of requests that are not open any more."""

        def prepare(db: psycopg.Connection) -> Wanted:
            return self._wanted(db, lane.directory, [op for _, op in operations])

        def rules(state: State) -> list[wire.Reply]:
            settled = [op for _, op in operations if isinstance(op, wire.Settle) and any(op.usage)]
            over[:] = [op for op in settled if op.request_id not in state.holds]
            return [step(state, speaker, op) for speaker, op in operations if not isinstance(op, wire.Run)]

        replies = lane.run(prepare, rules)
        if over:
            self._book_late(lane, over)
        return replies

    def _book_late(self, lane: Lane, proofs: Sequence[wire.Settle]) -> None:
        """Most of these were only sent twice; of what ended as `lost_node` the house bears the cost."""
        unbooked: dict[str, str | None] = {}

        def prepare(db: psycopg.Connection) -> Wanted:
            unbooked.update(late.unbooked(db, [proof.request_id for proof in proofs]))
            return Wanted()

        def rules(state: State) -> list[wire.Reply]:
            for proof in proofs:
                if proof.request_id in unbooked:
                    late.book(state, sane(proof), unbooked.pop(proof.request_id))
            return []

        lane.run(prepare, rules, admin=True)

    def _wanted(self, db: psycopg.Connection, directory: Directory, ops: Sequence[wire.Op]) -> Wanted:
        wanted = Wanted()
        for op in ops:
            assert not isinstance(op, wire.Run)
            wanted.requests.add(op.request_id)
            key = op.key_id if isinstance(op, wire.Admit) else self._keys_of.get(op.request_id)
            if key is not None:
                wanted.keys.add(key)
        directory.learn(db, wanted.keys)
        for op in ops:
            if isinstance(op, wire.Admit) and op.claim is not None:
                path = directory.path(op.key_id)
                if len(path) > 1 and "\0" not in op.claim:
                    wanted.claims.add((path[1], op.claim))
        return wanted

    # -- commands

    def _run_command(self, op: wire.Run) -> wire.Reply:
        lane = self._lanes[0]

        def prepare(db: psycopg.Connection) -> Wanted:
            return named(db, op.command, lane.directory)

        def rules(state: State) -> list[wire.Reply]:
            return [wire.Ran(op.n, Administration(state, self._ids).run(op.command, op.actor))]

        try:
            try:
                (reply,) = lane.run(prepare, rules, admin=True)
            except StoreRefused:  # another node made an account of the name meanwhile; now it will be found
                (reply,) = lane.run(prepare, rules, admin=True)
        except StoreBroken:
            raise
        except StoreFailed as error:
            return unavailable(op, str(error))
        except Exception as error:  # noqa: BLE001 - a command that fails must not end the ledger
            _log.exception("a command failed")
            return failed(op, error)
        return reply

    # -- reads

    def identify(self, digest: bytes) -> tuple[Principal | None, int | None]:
        """Who a digest speaks for now, and until when.

        Raises:
            StoreFailed: The database cannot be asked.
        """
        return self.reader.identify(digest)

    def trace(self, op: wire.Trace) -> wire.Trail | wire.Denied:
        """What became of the request behind an idempotency key.

        Raises:
            StoreFailed: The database cannot be asked.
        """
        return self.reader.trace(op)

    def prices(self) -> list[PriceVersion]:
        """Every price in force, and what is planned.

        Raises:
            StoreFailed: The database cannot be asked.
        """
        return self.reader.prices()

    def advance(self, op: wire.Advance) -> wire.Cursor:
        """Begin or advance the cursor of a consumer of usage records; returns where it is now.

        Raises:
            StoreFailed: The database cannot be asked.
        """
        now = self._clock.now_us()
        return self.keeper.read(lambda db: cursors.advance(db.execute, "%s", op, now))

    def of_incarnation(self, incarnation: str) -> list[str]:
        """Open requests of a life of one of this node's workers."""
        return self.keeper.of_incarnation(incarnation)

    def incarnations(self) -> set[str]:
        """Lives of this node's workers that have open requests."""
        return self.keeper.incarnations()

    # -- housekeeping

    def beat(self) -> None:
        """Say that this node is alive.

        Raises:
            Fenced: It goes on elsewhere or was given up for lost.
        """
        if not self.keeper.read(lambda db: beat(db, self.node)):
            raise Fenced(f"node {self.node.id} goes on elsewhere or was given up for lost; this process must end")

    def fence(self) -> None:
        """Give up silent nodes."""
        for id_ in self.keeper.read(lambda db: fence(db, self.node, self._silent_s)):
            _log.error("node %s was silent for %g s and is given up for lost", id_, self._silent_s)

    def left_open(self, after: str) -> list[str]:
        """Requests that lost nodes left open: a batch of them, after one."""
        return self.keeper.first(
            "SELECT request_id FROM holds WHERE node IN (SELECT id FROM nodes WHERE lost) AND request_id > %s "
            "ORDER BY request_id LIMIT %s",
            after,
            BATCH,
        )

    def prune(self, rows: int) -> int:
        """Delete at most so many expired claims and answers."""
        now = self.keeper.now_us()
        return self.keeper.read(lambda db: _prune(db, now, rows))

    def sweep(self, rows: int) -> int:
        """Delete at most so many rows of a chain that were archived."""
        return self.keeper.read(lambda db: sweep(db, rows))

    def refill(self) -> None:
        """Nothing: this node keeps no reserve of the database's disk."""

    def hang_up(self, after_s: float) -> None:
        """Break the sessions that have awaited an answer for longer than `after_s`; from any thread."""
        for line in self._lines():
            line.hang_up(after_s)

    def end(self) -> None:
        """Break all sessions and open none any more; from any thread."""
        for line in self._lines():
            line.end()

    def _lines(self) -> list[Line]:
        return [self.reader.line, self.keeper.line, *(lane.line for lane in self._lanes)]

    def close(self) -> None:
        """End the sessions."""
        for lane in self._lanes:
            lane.close()
        self.reader.close()
        self.keeper.close()


def lost_ending(request_id: str) -> Operation:
    """How a request of a lost node ends."""
    return Speaker(), wire.Settle(0, request_id, ZERO, "slot", "lost_node", "", billed=False)


def _prune(db: psycopg.Connection, now_us: int, limit: int) -> int:
    answers = db.execute(
        "DELETE FROM answers WHERE request_id IN "
        "(SELECT request_id FROM answers WHERE expires_us <= %s LIMIT %s)",
        (now_us, limit),
    ).rowcount
    claims = db.execute(
        "DELETE FROM claims WHERE (project, key) IN (SELECT project, key FROM claims "
        "WHERE expires_us <= %s AND state <> 'open' LIMIT %s FOR UPDATE SKIP LOCKED)",
        (now_us, limit),
    ).rowcount
    return answers + claims

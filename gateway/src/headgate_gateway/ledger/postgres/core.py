"""The core on PostgreSQL: what `ledger.core.Core` is on a store of its own. May import this room's modules.

Operations go to lanes by the hash of their organization; lanes run at the same time, each its own transactions.
Nothing that money depends on is remembered between batches, so any number of nodes may do this on one database.
"""

from __future__ import annotations

import logging
import secrets
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Final, TypeVar

import psycopg

from headgate_gateway.domain.admission import Principal
from headgate_gateway.domain.clock import Clock
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.domain.pricing import PriceVersion
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.administration import Administration
from headgate_gateway.ledger.book import Head
from headgate_gateway.ledger.core import BATCH, Speaker, failed, principal_of, step, unavailable
from headgate_gateway.ledger.flight import ZERO
from headgate_gateway.ledger.postgres import arrays, pepper, schema
from headgate_gateway.ledger.postgres.lane import Lane
from headgate_gateway.ledger.postgres.naming import named
from headgate_gateway.ledger.postgres.node import beat, fence, join, node_id
from headgate_gateway.ledger.postgres.session import ConnectionLost, connect, meaning
from headgate_gateway.ledger.postgres.slices import Directory, Gap, Prices, Slice, Wanted
from headgate_gateway.ledger.state import State
from headgate_gateway.ledger.store.contract import StoreBroken, StoreFailed, StoreRefused
from headgate_gateway.ledger.tracing import trace

LANES: Final = 1
"""Transactions at the same time. A caller waits for all lanes of its batch, so that on one machine with the
database two lanes of half the size gave 2,200 pairs/s where one gave 4,000; far from it more may help."""

SILENT_S: Final = 3900.0
"""A node silent for this long is given up for lost: longer than any request, by five minutes."""

T = TypeVar("T")
Operation = tuple[Speaker, wire.Op]

_log = logging.getLogger(__name__)


class PostgresCore:
    """Runs batches on PostgreSQL, for one node among others.

    Args:
        url: `postgresql://…`; the database must have been migrated.
        folder: The node's data folder: its id and the heads of its chains lie there.
        key: The chains' key, see `chain.chain_key`; the same on every node.
        clock: For deadlines and waits; the ledger's time is the database's.
        ids: For what commands make.
        lanes: Transactions at the same time.
        silent_s: After how long without a heartbeat another node is given up.
        local_time: Take the ledger's time from `clock`: for tests, which move it.

    Raises:
        StoreFailed: The database cannot be reached.
        WrongSchema: It was not migrated.
        WrongPepper: Its other nodes have another pepper.
    """

    full = False

    def __init__(
        self, url: str, folder: Path, key: bytes, clock: Clock, ids: IdSource, *,
        lanes: int = LANES, silent_s: float = SILENT_S, local_time: bool = False,
    ) -> None:  # fmt: skip
        self._url = url
        self._clock = clock
        self._ids = ids
        self._silent_s = silent_s
        self._local_time = local_time
        self._db = connect(url)
        try:
            schema.check(self._db)
            pepper.recognise(self._db, key)
        except BaseException:
            self._db.close()
            raise
        self.node = join(self._db, node_id(folder / "node.id", f"node_{secrets.token_hex(8)}"), lanes)
        self._lanes = [
            Lane(url, self.node, number, key, clock, folder / f"chain-{chain}.head", local_time=local_time)
            for number, chain in enumerate(self.node.chains)
        ]
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
        self._directory = Directory()
        self._prices = Prices()
        self._keys_of: dict[str, str] = {}
        """Open requests that this process admitted: whose key they are of."""

    def run(self, operations: Sequence[Operation]) -> list[wire.Reply]:
        """Run operations; the replies are facts in the database when this returns.

        Raises:
            StoreBroken: What is committed is unknown, or the node was shut out: the process must end.
        """
        replies: list[wire.Reply] = []
        for is_command, group in groupby(operations, lambda operation: isinstance(operation[1], wire.Run)):
            if is_command:
                replies += [self._run_command(operation) for operation in group]
            else:
                replies += self._run_requests(list(group))
        return replies

    # -- requests

    def _run_requests(self, operations: Sequence[Operation]) -> list[wire.Reply]:
        try:
            lanes = self._by_lane(operations)
        except StoreFailed as error:
            return [unavailable(op, str(error)) for _, op in operations]
        running: dict[int, Future[list[wire.Reply]]] = {}
        replies: dict[int, wire.Reply] = {}
        (first, *others) = lanes
        for lane in others:
            running[lane] = self._threads.submit(self._in_lane, lane, [operations[n] for n in lanes[lane]])
        outcomes = {first: self._in_lane(first, [operations[n] for n in lanes[first]])}
        outcomes |= {lane: future.result() for lane, future in running.items()}
        for lane, places in lanes.items():
            replies |= zip(places, outcomes[lane], strict=True)
        for n, (_, op) in enumerate(operations):
            self._remember(op, replies[n])
        return [replies[n] for n in range(len(operations))]

    def _by_lane(self, operations: Sequence[Operation]) -> dict[int, list[int]]:
        """Places of the operations, by the lane of their organization."""
        known = {op.request_id: op.key_id for _, op in operations if isinstance(op, wire.Admit)}
        named_ = {op.request_id for _, op in operations if not isinstance(op, wire.Admit | wire.Run)}
        missing = [id_ for id_ in named_ - known.keys() - self._keys_of.keys() if "\0" not in id_]
        if missing:
            known |= self._read(lambda db: _keys_of(db, missing))
        keys = [
            op.key_id
            if isinstance(op, wire.Admit)
            else known.get(op.request_id) or self._keys_of.get(op.request_id)
            for _, op in operations
            if not isinstance(op, wire.Run)
        ]
        askable = {key for key in keys if key is not None and "\0" not in key}  # no text there can have a NUL
        self._read(lambda db: self._directory.learn(db, askable))
        lanes: dict[int, list[int]] = defaultdict(list)
        for n, key in enumerate(keys):
            organization = None if key is None else self._directory.organization(key)
            lanes[zlib.crc32((organization or "").encode()) % len(self._lanes)].append(n)
            if key is not None:
                self._keys_of.setdefault(operations[n][1].request_id, key)  # type: ignore[union-attr]
        return lanes

    def _in_lane(self, number: int, operations: Sequence[Operation]) -> list[wire.Reply]:
        lane = self._lanes[number]

        def prepare(db: psycopg.Connection) -> Wanted:
            return self._wanted(db, lane.directory, [op for _, op in operations])

        def rules(state: State) -> list[wire.Reply]:
            return [step(state, speaker, op) for speaker, op in operations if not isinstance(op, wire.Run)]

        try:
            return lane.run(prepare, rules)
        except StoreBroken:
            raise
        except StoreFailed as error:
            _log.error("the store cannot take a batch: %s", error)
            return [unavailable(op, str(error)) for _, op in operations]
        except Exception as error:  # noqa: BLE001 - whatever one operation does must not fail the others
            _log.exception("a batch of %d operations failed; running each alone", len(operations))
            if len(operations) == 1:
                return [failed(operations[0][1], error)]
            return [reply for operation in operations for reply in self._in_lane(number, [operation])]

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

    def _remember(self, op: wire.Op, reply: wire.Reply) -> None:
        """Keep the key of what is open, and of nothing else."""
        assert not isinstance(op, wire.Run)
        if not isinstance(reply, wire.Grant | wire.Covered):
            self._keys_of.pop(op.request_id, None)

    # -- commands

    def _run_command(self, operation: Operation) -> wire.Reply:
        op = operation[1]
        assert isinstance(op, wire.Run)
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

        def read(db: psycopg.Connection) -> tuple[Principal | None, int | None]:
            row = db.execute("SELECT id FROM api_keys WHERE digest = %s", (digest,)).fetchone()
            if row is None:
                return None, None
            state, _ = self._view(db, Wanted(keys={row[0]}))
            key = state.keys.get(row[0])
            if key is None or not state.alive(key):
                return None, None
            return principal_of(key), key.ends_us

        return self._read(read)

    def trace(self, op: wire.Trace) -> wire.Trail | wire.Denied:
        """What became of the request behind an idempotency key.

        Raises:
            StoreFailed: The database cannot be asked.
        """

        def read(db: psycopg.Connection) -> wire.Trail | wire.Denied:
            wanted = Wanted(keys={op.key_id})
            self._directory.learn(db, wanted.keys)
            path = self._directory.path(op.key_id)
            if len(path) > 1:
                row = db.execute(
                    "SELECT request_id FROM claims WHERE project = %s AND key = %s", (path[1], op.claim)
                ).fetchone()
                if row is not None:
                    wanted.requests.add(row[0])
                    wanted.keys |= set(_keys_of(db, [row[0]]).values())
            state, gap = self._view(db, wanted)
            return trace(op, state, gap)

        return self._read(read)

    def prices(self) -> list[PriceVersion]:
        """Every version in force."""
        self._read(lambda db: self._view(db, Wanted()))
        return list(self._prices.current.values())

    def of_incarnation(self, incarnation: str) -> list[str]:
        """Open requests of a life of one of this node's workers."""
        return self._read(
            lambda db: _first(
                db, "SELECT request_id FROM holds WHERE node = %s AND incarnation = %s", self.node.id, incarnation
            )
        )

    def incarnations(self) -> set[str]:
        """Lives of this node's workers that have open requests."""
        return set(
            self._read(
                lambda db: _first(db, "SELECT DISTINCT incarnation FROM holds WHERE node = %s", self.node.id)
            )
        )

    def _view(self, db: psycopg.Connection, wanted: Wanted) -> tuple[State, Gap]:
        """A slice without locks: for answers that no money depends on."""
        self._directory.learn(db, wanted.keys)
        with db.pipeline():
            part = Slice(db, wanted, self._directory, self._prices)
            now = db.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        row = now.fetchone()
        assert row is not None
        state = part.state(Head())
        state.begin(self._clock.now_us() if self._local_time else row[0])
        return state, part.gap

    def _read(self, read: Callable[[psycopg.Connection], T]) -> T:
        """Ask the database, once more when the connection turns out to be dead."""
        for again in (True, False):
            try:
                if self._db.closed:
                    self._db = connect(self._url)
                return read(self._db)
            except psycopg.Error as error:
                found = meaning(error, self._db)
                if not (again and isinstance(found, ConnectionLost)):
                    raise StoreFailed(str(found)) from error
        raise AssertionError

    # -- housekeeping

    def prune(self, rows: int) -> int:
        """Beat the heart, end what lost nodes left open, delete at most so many expired claims and answers."""
        self._read(lambda db: beat(db, self.node))
        self.end_lost()
        now = self._read(lambda db: self._view(db, Wanted()))[0].now_us
        return self._read(lambda db: _prune(db, now, rows))

    def end_lost(self) -> int:
        """Give up silent nodes and end their requests, at no cost to the customer; returns how many ended."""
        for id_ in self._read(lambda db: fence(db, self.node, self._silent_s)):
            _log.error("node %s was silent for %g s and is given up for lost", id_, self._silent_s)
        open_ = self._read(
            lambda db: _first(
                db, "SELECT request_id FROM holds WHERE node IN (SELECT id FROM nodes WHERE lost) LIMIT %s", BATCH
            )
        )
        speaker = Speaker(-1, "")
        self.run(
            [
                (speaker, wire.Settle(0, request_id, ZERO, "slot", "lost_node", "", billed=False))
                for request_id in open_
            ]
        )
        return len(open_)

    def refill(self) -> None:
        """Nothing: this node keeps no reserve of the database's disk."""

    def close(self) -> None:
        """End the sessions."""
        self._threads.shutdown()
        for lane in self._lanes:
            lane.close()
        self._db.close()


def _keys_of(db: psycopg.Connection, requests: Iterable[str]) -> dict[str, str]:
    """The keys of open requests."""
    return dict(
        db.execute(
            "SELECT request_id, key_id FROM holds WHERE request_id = ANY(%s::text[])", (arrays.texts(requests),)
        ).fetchall()
    )


def _first(db: psycopg.Connection, sql: str, *given: object) -> list[str]:
    return [row[0] for row in db.execute(sql.encode(), given)]


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

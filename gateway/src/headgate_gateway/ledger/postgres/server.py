"""The ledger's socket on a shared database: lanes on threads, so that nothing waits for a database but who must.

The event loop keeps the queues and the clients; each lane has a thread that runs one transaction after another,
and replies as soon as its own batch is committed. Questions and housekeeping have a thread and a session each. A
database that is silent or gone stops those threads only: workers are told `unavailable`, and answer 503.

May import the ledger's server and this room's modules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple, Unpack

from headgate_engine import ipc

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.pricing import PriceVersion
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.core import BATCH, Speaker, unavailable
from headgate_gateway.ledger.postgres.core import PostgresCore, lost_ending
from headgate_gateway.ledger.postgres.queues import Entry, Queues
from headgate_gateway.ledger.server import (
    RECOVERY_EVERY_S,
    SWEEP_EVERY_S,
    TIDY_EVERY_S,
    Client,
    LedgerServer,
    Peer,
    Question,
    reprices,
)
from headgate_gateway.ledger.store.contract import StoreFailed, StoreRefused

FOLLOW_EVERY_S: Final = 0.4
"""How often it is looked what other nodes changed: a revoke there is known here within a second."""

SILENT_S: Final = 8.0
"""How long a database may be silent before its sessions are broken: longer than any of their own bounds."""

WATCH_EVERY_S: Final = 0.5
CLOSE_S: Final = 6.0
"""How long a stop waits for what was begun; what is cut off is recovered at the next start."""

_KEY_ACTIONS: Final = frozenset({"key.create", "key.revoke", "key.rotate"})
_PRICE_ACTIONS: Final = frozenset({"price.set", "price.cancel", "prices.sync"})
_LIMITING_ACTIONS: Final = frozenset({"budget.set", "credit.grant"})

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger(__name__)


class PostgresServer(LedgerServer):
    """Serves a node of a shared ledger on a Unix socket; see `LedgerServer` for the arguments."""

    def __init__(
        self, core: PostgresCore, socket: Path, flights: Path, *, pepper: bytes, admin_digest: bytes
    ) -> None:
        super().__init__(core, socket, flights, pepper=pepper, admin_digest=admin_digest)
        self._node = core
        self._queues = Queues(core.lanes)
        self._threads = [ThreadPoolExecutor(1, f"lane-{number}") for number in range(core.lanes)]
        self._asking = ThreadPoolExecutor(1, "asking")
        self._keeping = ThreadPoolExecutor(1, "keeping")
        self._strangers: list[Entry] = []
        self._declared: dict[str, set[str]] = {}
        """By incarnation that has just said hello: what is known to be in flight there."""
        self._in_force: list[PriceVersion] = []
        self._stale = True
        """Whether other prices may be in force than these."""
        self._entry = 0
        self._ended_until = ""
        """Up to which request lost nodes' requests have been ended, in this round."""

    async def start(self) -> None:
        """Recover what the dead left behind, then accept clients.

        Raises:
            StoreFailed: The database does not answer.
        """
        self._entry = await self._ask_core(self._node.keeper.last_entry)
        await self._read_prices()
        with contextlib.suppress(OSError):  # that is said when it is tried again
            await self.recover()
        await self.recover_orphans()
        self._server = await ipc.listen(self._socket, self._accept)
        self._every(RECOVERY_EVERY_S, self.recover)
        self._every(TIDY_EVERY_S, self._tidy)
        self._every(TIDY_EVERY_S, self._end_lost)
        self._every(TIDY_EVERY_S, self._prune)
        self._every(SWEEP_EVERY_S, self._sweep)
        self._every(FOLLOW_EVERY_S, self._follow)
        self._every(WATCH_EVERY_S, self._hang_up)

    async def close(self) -> None:
        """Commit what waits, answer it, and close; what a silent database holds up is left to the next start."""
        if self._server is not None:
            self._server.close()
        until = self._loop.time() + CLOSE_S
        while not self._queues.idle and self._loop.time() < until:
            await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        for client in list(self._clients):
            client.connection.close()
        self._socket.unlink(missing_ok=True)
        self._node.end()
        for thread in (*self._threads, self._asking, self._keeping):
            await asyncio.to_thread(thread.shutdown, cancel_futures=True)
        self._node.close()

    async def _hang_up(self) -> None:
        self._node.hang_up(SILENT_S)

    # -- batches

    def _plan(self) -> None:
        while self._urgent:
            self._put(Entry(*self._urgent.popleft()))
        while self._admits:
            self._put(Entry(*self._admits.popleft()))

    def _put(self, entry: Entry) -> None:
        lane = self._node.lane_of(entry.op)
        if lane is not None:
            self._wait(lane, entry)
            return
        self._strangers.append(entry)
        if len(self._strangers) == 1:
            self._spawn(self._look_up())

    async def _look_up(self) -> None:
        """Find the lanes of operations whose organization is not known here yet."""
        while strangers := self._strangers[:BATCH]:
            try:
                await self._on(self._asking, self._node.learn, [entry.op for entry in strangers])
            except (StoreFailed, StoreRefused) as error:
                self._deliver(strangers, [unavailable(entry.op, str(error)) for entry in strangers])
            else:
                for entry in strangers:
                    self._wait(self._node.lane_of(entry.op) or 0, entry)
            del self._strangers[: len(strangers)]

    def _wait(self, lane: int, entry: Entry) -> None:
        self._queues.put(lane, entry)
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._begin)

    def _begin(self, *, freed: bool = False) -> None:
        """Begin the batches that are to begin now."""
        self._planned = False
        while (taken := self._queues.take(freed=freed)) is not None:
            self._spawn(self._run_batch(*taken))
            freed = False

    async def _run_batch(self, lane: int, batch: list[Entry]) -> None:
        operations = [(entry.speaker, entry.op) for entry in batch]
        replies = await self._on(self._threads[lane], self._node.run_in_lane, lane, operations)
        self._queues.ended(lane)
        self._begin(freed=True)
        if any(reprices(entry.op, reply) for entry, reply in zip(batch, replies, strict=True)):
            self._stale = True
            with contextlib.suppress(StoreFailed):
                await self._read_prices()
        self._deliver(batch, replies)
        reach("ledger.after_reply")

    def _drop(self, connection: Peer) -> None:
        self._node.forget([entry.op for entry in self._queues.drop(connection)])

    def _admits_waiting(self) -> int:
        return len(self._strangers) + self._queues.admits

    # -- questions

    def _ask(self, connection: Peer, question: Question) -> None:
        self._spawn(self._find_out(connection, question))

    async def _find_out(self, connection: Peer, question: Question) -> None:
        try:
            if isinstance(question, wire.Identify):
                found = await self._on(self._asking, self._node.identify, question.digest)
                self._reply(connection, wire.Identity(question.n, *found))
            elif isinstance(question, wire.Advance):
                self._reply(connection, await self._on(self._keeping, self._node.advance, question))
            else:
                self._reply(connection, await self._on(self._asking, self._node.trace, question))
        except StoreFailed as error:
            self._reply(connection, wire.Failed(question.n, "unavailable", str(error)))
        except StoreRefused as error:
            self._reply(connection, wire.Failed(question.n, "invalid", str(error)))

    def _prices(self) -> list[PriceVersion]:
        return self._in_force

    # -- what other nodes changed

    async def _follow(self) -> None:
        """Tell workers to forget what other nodes changed, and whether the database answers at all."""
        reader, chains = self._node.keeper, self._node.node.chains
        try:
            last, entries = await self._ask_core(reader.entries, self._entry, chains)
        except StoreFailed:
            self._node.usable = False
            raise
        else:
            self._node.usable = True
        finally:
            self._tell_usable()
        actions = {entry.action for entry in entries}
        self._stale = self._stale or bool(actions & _PRICE_ACTIONS)
        changed = self._stale and await self._read_prices()
        keys = None if actions & _LIMITING_ACTIONS else [e.target for e in entries if e.action in _KEY_ACTIONS]
        if changed or keys is None or keys:
            self._tell(keys, self._in_force if changed else None)
        self._entry = last  # only now: what cannot be told yet, because the database fails, is read again

    async def _read_prices(self) -> bool:
        """Take the prices in force and to come; returns whether they are others."""
        before = self._in_force
        self._stale = False  # a price that is made while they are read makes them stale again
        try:
            self._in_force = await self._ask_core(self._node.keeper.prices)
        except BaseException:
            self._stale = True
            raise
        return self._in_force != before

    # -- the dead

    def _void_undeclared(self, client: Client, declared: frozenset[str]) -> None:
        """As its worker has said what it has in flight, what else is open of that life can be given back.

        What it admits while the database is asked belongs to what it declared.
        """
        incarnation = client.speaker.incarnation
        if incarnation in self._declared:
            self._declared[incarnation] |= declared
            return
        self._declared[incarnation] = set(declared)
        self._spawn(self._void_rest(client.speaker))

    async def _void_rest(self, speaker: Speaker) -> None:
        while True:
            try:
                open_requests = await self._ask_core(self._node.of_incarnation, speaker.incarnation)
                break
            except StoreFailed:
                await asyncio.sleep(WATCH_EVERY_S)
        declared = self._declared.pop(speaker.incarnation)
        for request_id in open_requests:
            if request_id not in declared:
                self._put(Entry(None, speaker, wire.Void(0, request_id)))

    def _on_admit(self, connection: Peer, client: Client, admit: wire.Admit) -> None:
        if (declared := self._declared.get(client.speaker.incarnation)) is not None:
            declared.add(admit.request_id)
        super()._on_admit(connection, client, admit)

    async def _tidy(self) -> None:
        """Say that this node lives, and give up those that are silent."""
        await self._ask_core(self._node.beat)
        await self._ask_core(self._node.fence)
        await self.recover_orphans()

    async def _end_lost(self) -> bool:
        """End some of what lost nodes left open; returns whether there may be more.

        What the store refuses to end is passed over until all others had their turn.
        """
        lost = await self._ask_core(self._node.left_open, self._ended_until)
        await self._carry_out([lost_ending(request_id) for request_id in lost])
        more = len(lost) == BATCH
        self._ended_until = lost[-1] if more else ""
        return more

    # -- threads

    async def _ask_core(self, do: Callable[[Unpack[Ts]], T], *given: *Ts) -> T:
        return await self._on(self._keeping, do, *given)

    async def _on(self, thread: Executor, do: Callable[[Unpack[Ts]], T], *given: *Ts) -> T:
        return await self._loop.run_in_executor(thread, do, *given)

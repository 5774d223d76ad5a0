"""The ledger's side of its socket: takes operations, runs them in batches, answers. May import core, wire, ipc.

One thread and no timer: while a batch commits, the next waits in the socket's buffers. What ends or extends a
request, and what an operator asks, goes before admissions, and is never shed.

Committing on a second thread while the next batch is executed was built and measured: it lost a third (10,000 to
6,900 pairs/s at 32 callers), because both threads want the interpreter's lock around each of SQLite's calls, and
two half batches sync twice where one would sync once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from headgate_engine import ipc

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.admission import Principal, Refused
from headgate_gateway.domain.commands import (
    Create,
    Created,
    Done,
    GrantCredit,
    PricesSet,
    RevokeKey,
    Rotate,
    SetBudget,
)
from headgate_gateway.domain.pricing import PriceVersion
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.core import BATCH, Speaker
from headgate_gateway.ledger.recovering import Recovering
from headgate_gateway.ledger.store import StoreBroken, StoreFailed

ADMITS_WAITING: Final = 16_384
"""Admissions that may wait; more are refused at once."""

VISITORS: Final = 256
"""Connections of others than workers at most, where there are descriptors for so many."""

SEEN_TIMEOUT_S: Final = 2.0
"""How long a worker may take to drop a revoked key before its connection is closed: it then asks again."""

STOOD_STILL_S: Final = 0.5
"""A look at the clients that comes so late says nothing of them, but of this process."""

RECOVERY_EVERY_S: Final = 0.1
TIDY_EVERY_S: Final = 5.0
SWEEP_EVERY_S: Final = 1.0
"""Where nothing is archived this is one question; whoever archives waits for it."""

PRUNE_ROWS: Final = 100

_log = logging.getLogger(__name__)

Peer = ipc.Connection[wire.ToLedger]
Question = wire.Identify | wire.Trace | wire.Advance

Asker = Peer | asyncio.Future[wire.Reply] | None
"""Who is told what became of an operation: a client, something of this process, or nobody."""


class Client:
    """A connection that has said who it is."""

    __slots__ = ("connection", "seen", "speaker")

    def __init__(self, connection: Peer, speaker: Speaker) -> None:
        self.connection = connection
        self.speaker = speaker
        self.seen = 0


class Books(Protocol):
    """What a server serves: `core.Core` here, `postgres.core.PostgresCore` on a database."""

    usable: bool
    """Whether the store took what was last tried."""

    def run(self, operations: Sequence[tuple[Speaker, wire.Op]]) -> list[wire.Reply]:
        """Run operations; the replies are facts in the store when this returns."""
        ...

    def identify(self, digest: bytes) -> tuple[Principal | None, int | None]:
        """Who a digest speaks for now, and until when."""
        ...

    def trace(self, op: wire.Trace) -> wire.Trail | wire.Denied:
        """What became of the request behind an idempotency key."""
        ...

    def advance(self, op: wire.Advance) -> wire.Cursor:
        """Begin or advance the cursor of a consumer of usage records."""
        ...

    def prices(self) -> list[PriceVersion]:
        """Every version in force."""
        ...

    def of_incarnation(self, incarnation: str) -> list[str]:
        """Open requests of a life of a worker."""
        ...

    def incarnations(self) -> set[str]:
        """Lives of workers that have open requests."""
        ...

    def prune(self, rows: int) -> int:
        """Delete at most so many expired claims and answers."""
        ...

    def sweep(self, rows: int) -> int:
        """Delete at most so many rows that were archived."""
        ...

    def refill(self) -> None:
        """Take reserves back when there is room again."""
        ...

    def close(self) -> None:
        """Leave the store at rest."""
        ...


class LedgerServer(Recovering):
    """Serves a core on a Unix socket.

    Args:
        core: What runs the operations.
        socket: Where to listen.
        flights: Folder of the workers' flight files.
        pepper: Told to clients, so that they can look keys up by digest.
        admin_digest: The same for the admin key.
    """

    def __init__(self, core: Books, socket: Path, flights: Path, *, pepper: bytes, admin_digest: bytes) -> None:
        super().__init__(core, flights)
        self._core = core
        self._socket = socket
        self._pepper = pepper
        self._admin_digest = admin_digest
        self._codec: ipc.Codec[wire.ToLedger] = ipc.Codec(wire.ToLedger)
        self._clients: set[Client] = set()
        self._visitors: dict[Peer, None] = {}
        self.most_visitors = VISITORS
        self._urgent: deque[tuple[Asker, Speaker, wire.Op]] = deque()
        self._admits: deque[tuple[Peer, Speaker, wire.Admit]] = deque()
        self._planned = False
        self._usable = True
        self._serial = 0
        self._withheld: dict[int, tuple[Peer | None, wire.Reply]] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Recover what the dead left behind, then accept clients."""
        with contextlib.suppress(OSError):  # that is said when it is tried again
            await self.recover()
        await self.recover_orphans()
        self._server = await ipc.listen(self._socket, self._accept)
        self._every(RECOVERY_EVERY_S, self.recover)
        self._every(TIDY_EVERY_S, self._tidy)
        self._every(TIDY_EVERY_S, self._prune)
        self._every(SWEEP_EVERY_S, self._sweep)

    async def close(self) -> None:
        """Commit what waits, answer it, and close."""
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            self._server.close()
        while self._urgent or self._admits:
            self._pump()
        for client in list(self._clients):
            client.connection.close()
        self._core.close()
        self._socket.unlink(missing_ok=True)

    async def _tidy(self) -> None:
        self._core.refill()
        self._tell_usable()
        await self.recover_orphans()

    async def _prune(self) -> bool:
        """Delete some of what has expired; returns whether there may be more."""
        return await self._ask_core(self._core.prune, PRUNE_ROWS) >= PRUNE_ROWS

    async def _sweep(self) -> bool:
        """Delete some of what was archived; returns whether there may be more."""
        return await self._ask_core(self._core.sweep, PRUNE_ROWS) > 0

    def _tell_usable(self) -> None:
        """Let workers know when the store is out of reach and when it is back."""
        if self._core.usable != self._usable:
            self._usable = self._core.usable
            for client in self._clients:
                self._reply(client.connection, wire.Store(self._usable))

    @property
    def clients(self) -> int:
        """Connections that have said who they are."""
        return len(self._clients)

    # -- connections

    def _accept(self) -> Peer:
        return ipc.Connection(self._codec, self._on_message, self._on_close, self._on_open)

    def _on_open(self, connection: Peer) -> None:
        """A visitor, until it says that it is a worker; the oldest of too many goes, for workers' sake."""
        self._visitors[connection] = None
        if len(self._visitors) > self.most_visitors:
            oldest = next(iter(self._visitors))
            del self._visitors[oldest]
            _log.warning("more than %d commands are connected; closing the oldest", self.most_visitors)
            oldest.abort()

    def _on_message(self, connection: Peer, message: wire.ToLedger) -> None:
        client: Client | None = connection.peer
        if client is not None and isinstance(message, wire.Settle):
            self._urgent.append((connection, client.speaker, message))
            self._plan()
        elif client is not None and isinstance(message, wire.Admit):
            self._on_admit(connection, client, message)
        elif isinstance(message, wire.Hello):
            self._on_hello(connection, message)
        elif client is None:
            connection.close()
        elif isinstance(message, Question):
            self._ask(connection, message)
        elif isinstance(message, wire.Seen):
            client.seen = max(client.seen, message.serial)
            self._release()
        else:
            self._urgent.append((connection, client.speaker, message))
            self._plan()

    def _ask(self, connection: Peer, question: Question) -> None:
        """Answer a question from what was committed, or move a cursor, which no batch has to do with."""
        if isinstance(question, wire.Identify):
            principal, expires_us = self._core.identify(question.digest)
            self._reply(connection, wire.Identity(question.n, principal, expires_us))
            return
        try:
            if isinstance(question, wire.Advance):
                self._reply(connection, self._core.advance(question))
            else:
                self._reply(connection, self._core.trace(question))
        except StoreFailed as error:
            self._reply(connection, wire.Failed(question.n, "unavailable", str(error)))
        except StoreBroken as error:
            self._break(error)

    def _on_hello(self, connection: Peer, hello: wire.Hello) -> None:
        if hello.protocol != wire.PROTOCOL:
            self._reply(
                connection,
                wire.Failed(
                    0, "protocol", f"the client speaks protocol {hello.protocol}, the ledger {wire.PROTOCOL}"
                ),
            )
            connection.close()
            return
        if connection.peer is not None:
            connection.close()
            return
        client = Client(connection, Speaker(hello.worker, hello.incarnation))
        client.seen = self._serial
        connection.peer = client
        self._clients.add(client)
        if hello.worker >= 0:
            self._visitors.pop(connection, None)
        if hello.incarnation:
            self._after_waiting(lambda: self._void_undeclared(client, frozenset(hello.in_flight)))
        self._reply(connection, wire.Welcome(self._pepper, self._admin_digest, self._prices(), self._usable))
        reach("ledger.after_welcome")

    def _prices(self) -> list[PriceVersion]:
        return self._core.prices()

    def _after_waiting(self, then: Callable[[], None]) -> None:
        """Do it once all that came before has been carried out."""
        with contextlib.suppress(StoreBroken):
            while self._urgent or self._admits:
                self._pump()
            then()

    def _void_undeclared(self, client: Client, declared: frozenset[str]) -> None:
        for request_id in self._core.of_incarnation(client.speaker.incarnation):
            if request_id not in declared:
                self._urgent.append((None, client.speaker, wire.Void(0, request_id)))
        self._plan()

    def _on_admit(self, connection: Peer, client: Client, admit: wire.Admit) -> None:
        if self._admits_waiting() >= ADMITS_WAITING:
            refused = Refused(
                code="overloaded", message="too many requests wait for admission", retry_after_ms=1000
            )
            self._reply(connection, wire.Denied(admit.n, refused))
            return
        self._admits.append((connection, client.speaker, admit))
        self._plan()

    def _admits_waiting(self) -> int:
        return len(self._admits)

    def _wait_in_line(self, asker: asyncio.Future[wire.Reply], speaker: Speaker, op: wire.Op) -> None:
        self._urgent.append((asker, speaker, op))
        self._plan()

    def _on_close(self, connection: Peer, _error: Exception | None) -> None:
        self._visitors.pop(connection, None)
        if connection.peer is not None:
            self._clients.discard(connection.peer)
            self._drop(connection)
            self._release()

    def _drop(self, connection: Peer) -> None:
        """Begin nothing for who has gone: if it lives it asks again, and if not nobody would ever end it."""
        self._admits = deque(waiting for waiting in self._admits if waiting[0] is not connection)

    def _is_connected(self, incarnation: str) -> bool:
        """Whether what a worker has sent may not all have been read yet, even if it is dead."""
        return any(client.speaker.incarnation == incarnation for client in self._clients)

    def _reply(self, connection: Peer | None, reply: wire.FromLedger) -> None:
        if connection is not None:
            try:
                connection.send(reply)
            except ipc.ConnectionLost:
                return  # the client asks again when it is back
            except ipc.FrameTooLarge as error:
                connection.send(
                    wire.Failed(getattr(reply, "n", 0), "invalid", f"the answer is too long: {error}")
                )

    # -- batches

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._planned = False
        with contextlib.suppress(StoreBroken):
            self._pump()
            if self._urgent or self._admits:
                self._plan()

    def _pump(self) -> None:
        """Run one batch and answer it."""
        urgent, admits = self._urgent, self._admits
        batch: list[tuple[Asker, Speaker, wire.Op]] = []
        while urgent and len(batch) < BATCH:
            batch.append(urgent.popleft())
        while admits and len(batch) < BATCH:
            batch.append(admits.popleft())
        if not batch:
            return
        replies = self._run([(speaker, op) for _, speaker, op in batch])
        self._tell_usable()
        self._deliver(batch, replies)
        reach("ledger.after_reply")

    def _deliver(self, batch: Iterable[tuple[Asker, Speaker, wire.Op]], replies: Iterable[wire.Reply]) -> None:
        """Say what became of operations to whoever asked."""
        for (to, _, op), reply in zip(batch, replies, strict=True):
            if isinstance(to, asyncio.Future):
                if not to.done():
                    to.set_result(reply)
            elif isinstance(op, wire.Run) and matters(op, reply):
                self._announce(to, op, reply)
            else:
                self._reply(to, reply)

    def _run(self, operations: Sequence[tuple[Speaker, wire.Op]]) -> list[wire.Reply]:
        """Run operations; after the store broke none, because memory is ahead of what is on disk.

        Raises:
            StoreBroken: The process must end.
        """
        if self.broken.done():
            raise StoreBroken(self.broken.result())
        try:
            return self._core.run(operations)
        except StoreBroken as error:
            self._break(error)
            raise

    # -- changes that workers must know of

    def _announce(self, connection: Peer | None, op: wire.Run, reply: wire.Reply) -> None:
        """Tell every client to forget what changed; the answer waits until all have."""
        keys = [op.command.id] if isinstance(op.command, Create | Rotate | RevokeKey) else None
        self._tell(keys, self._prices() if reprices(op, reply) else None)
        self._withheld[self._serial] = (connection, reply)
        self._await_seen(self._serial)
        self._release()

    def _await_seen(self, serial: int) -> None:
        due = self._loop.time() + SEEN_TIMEOUT_S
        self._loop.call_at(due, self._overdue, serial, due)

    def _tell(self, keys: list[str] | None, prices: list[PriceVersion] | None) -> None:
        self._serial += 1
        for client in self._clients:
            self._reply(client.connection, wire.Changed(self._serial, keys, prices))

    def _release(self) -> None:
        confirmed = min((client.seen for client in self._clients), default=self._serial)
        for serial in [serial for serial in self._withheld if serial <= confirmed]:
            self._reply(*self._withheld.pop(serial))

    def _overdue(self, serial: int, due: float) -> None:
        if serial not in self._withheld:
            return
        if self._loop.time() > due + STOOD_STILL_S:
            # It was this process that stood still; what clients said meanwhile has still to be read.
            self._await_seen(serial)
        else:
            for client in [client for client in self._clients if client.seen < serial]:
                _log.warning("worker %d did not confirm a change; closing it", client.speaker.worker)
                client.connection.close()
                self._clients.discard(client)
            self._release()


def reprices(op: wire.Op, reply: wire.Reply) -> bool:
    """Whether an operation may have changed prices: a key's successor has the key's own."""
    result = reply.result if isinstance(reply, wire.Ran) else None
    return isinstance(result, PricesSet) or (
        isinstance(op, wire.Run) and isinstance(op.command, Rotate) and isinstance(result, Created)
    )


def matters(op: wire.Run, reply: wire.Reply) -> bool:
    """Whether a command changed what workers keep of keys and prices."""
    result = reply.result if isinstance(reply, wire.Ran) else None
    if isinstance(result, PricesSet):
        return bool(result.versions)
    if isinstance(result, Done):
        return result.changed and isinstance(op.command, RevokeKey | SetBudget | GrantCredit)
    return isinstance(result, Created)

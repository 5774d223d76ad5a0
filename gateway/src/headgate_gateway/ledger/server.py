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
from collections.abc import Callable
from pathlib import Path
from typing import Final

from headgate_engine import ipc

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.admission import Refused
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
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.core import BATCH, Core, Speaker
from headgate_gateway.ledger.flight import ZERO, boot_id, dead_files
from headgate_gateway.ledger.recovery import endings
from headgate_gateway.ledger.store import StoreBroken

ADMITS_WAITING: Final = 16_384
"""Admissions that may wait; more are refused at once."""

SEEN_TIMEOUT_S: Final = 2.0
"""How long a worker may take to drop a revoked key before its connection is closed: it then asks again."""

RECOVERY_EVERY_S: Final = 0.1
PRUNE_EVERY_S: Final = 5.0
PRUNE_ROWS: Final = 500

_log = logging.getLogger(__name__)

Peer = ipc.Connection[wire.ToLedger]


class _Client:
    """A connection that has said who it is."""

    __slots__ = ("connection", "seen", "speaker")

    def __init__(self, connection: Peer, speaker: Speaker) -> None:
        self.connection = connection
        self.speaker = speaker
        self.seen = 0


class LedgerServer:
    """Serves a core on a Unix socket.

    Args:
        core: What runs the operations.
        socket: Where to listen.
        flights: Folder of the workers' flight files.
        pepper: Told to clients, so that they can look keys up by digest.
        admin_digest: The same for the admin key.
    """

    def __init__(self, core: Core, socket: Path, flights: Path, *, pepper: bytes, admin_digest: bytes) -> None:
        self._core = core
        self._socket = socket
        self._flights = flights
        self._pepper = pepper
        self._admin_digest = admin_digest
        self._codec: ipc.Codec[wire.ToLedger] = ipc.Codec(wire.ToLedger)
        self._clients: set[_Client] = set()
        self._urgent: deque[tuple[Peer | None, Speaker, wire.Op]] = deque()
        self._admits: deque[tuple[Peer, Speaker, wire.Admit]] = deque()
        self._planned = False
        self._serial = 0
        self._withheld: dict[int, tuple[Peer | None, wire.Reply]] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[str] = self._loop.create_future()
        """Done when the store cannot be trusted any more: the process must end and start again."""

    async def start(self) -> None:
        """Recover what the dead left behind, then accept clients."""
        self.recover()
        self.recover_orphans()
        self._server = await ipc.listen(self._socket, self._accept)
        self._every(RECOVERY_EVERY_S, self.recover)
        self._every(PRUNE_EVERY_S, self._tidy)

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

    def _tidy(self) -> None:
        self._core.refill()
        self.recover_orphans()
        self._core.prune(PRUNE_ROWS)

    @property
    def clients(self) -> int:
        """Connections that have said who they are."""
        return len(self._clients)

    # -- connections

    def _accept(self) -> Peer:
        return ipc.Connection(self._codec, self._on_message, self._on_close)

    def _on_message(self, connection: Peer, message: wire.ToLedger) -> None:
        client: _Client | None = connection.peer
        if isinstance(message, wire.Hello):
            self._on_hello(connection, message)
        elif client is None:
            connection.close()
        elif isinstance(message, wire.Admit):
            self._on_admit(connection, client, message)
        elif isinstance(message, wire.Identify):
            principal, expires_us = self._core.identify(message.digest)
            self._reply(connection, wire.Identity(message.n, principal, expires_us))
        elif isinstance(message, wire.Trace):
            self._reply(connection, self._core.trace(message))
        elif isinstance(message, wire.Seen):
            client.seen = max(client.seen, message.serial)
            self._release()
        else:
            self._urgent.append((connection, client.speaker, message))
            self._plan()

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
        client = _Client(connection, Speaker(hello.worker, hello.incarnation))
        client.seen = self._serial
        connection.peer = client
        self._clients.add(client)
        if hello.incarnation:
            self._after_waiting(lambda: self._void_undeclared(client, frozenset(hello.in_flight)))
        prices, at_us = self._core.prices()
        self._reply(connection, wire.Welcome(self._pepper, self._admin_digest, prices, at_us))
        reach("ledger.after_welcome")

    def _after_waiting(self, then: Callable[[], None]) -> None:
        """Do it once all that came before has been carried out."""
        while self._urgent or self._admits:
            self._pump()
        then()

    def _void_undeclared(self, client: _Client, declared: frozenset[str]) -> None:
        for request_id in self._core.of_incarnation(client.speaker.incarnation):
            if request_id not in declared:
                self._urgent.append((None, client.speaker, wire.Void(0, request_id)))
        self._plan()

    def _on_admit(self, connection: Peer, client: _Client, admit: wire.Admit) -> None:
        if len(self._admits) >= ADMITS_WAITING:
            refused = Refused(
                code="overloaded", message="too many requests wait for admission", retry_after_ms=1000
            )
            self._reply(connection, wire.Denied(admit.n, refused))
            return
        self._admits.append((connection, client.speaker, admit))
        self._plan()

    def _on_close(self, connection: Peer, _error: Exception | None) -> None:
        if connection.peer is not None:
            self._clients.discard(connection.peer)
            self._release()

    def _reply(self, connection: Peer | None, reply: wire.FromLedger) -> None:
        if connection is not None:
            with contextlib.suppress(ipc.ConnectionLost):
                connection.send(reply)

    # -- batches

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._planned = False
        try:
            self._pump()
        except StoreBroken as error:
            if not self.broken.done():
                self.broken.set_result(str(error))
            return
        if self._urgent or self._admits:
            self._plan()

    def _pump(self) -> None:
        """Run one batch and answer it."""
        urgent, admits = self._urgent, self._admits
        batch: list[tuple[Peer | None, Speaker, wire.Op]] = []
        while urgent and len(batch) < BATCH:
            batch.append(urgent.popleft())
        while admits and len(batch) < BATCH:
            batch.append(admits.popleft())
        if not batch:
            return
        replies = self._core.run([(speaker, op) for _, speaker, op in batch])
        for (connection, _, op), reply in zip(batch, replies, strict=True):
            if isinstance(op, wire.Run) and _matters(op, reply):
                self._announce(connection, op, reply)
            else:
                self._reply(connection, reply)
        reach("ledger.after_reply")

    # -- changes that workers must know of

    def _announce(self, connection: Peer | None, op: wire.Run, reply: wire.Reply) -> None:
        """Tell every client to forget what changed; the answer waits until all have."""
        self._serial += 1
        keys = [op.command.id] if isinstance(op.command, Create | Rotate | RevokeKey) else None
        priced = isinstance(reply, wire.Ran) and isinstance(reply.result, PricesSet)
        prices, at_us = self._core.prices() if priced else (None, 0)
        for client in self._clients:
            self._reply(client.connection, wire.Changed(self._serial, keys, prices, at_us))
        self._withheld[self._serial] = (connection, reply)
        self._loop.call_later(SEEN_TIMEOUT_S, self._overdue, self._serial)
        self._release()

    def _release(self) -> None:
        confirmed = min((client.seen for client in self._clients), default=self._serial)
        for serial in [serial for serial in self._withheld if serial <= confirmed]:
            self._reply(*self._withheld.pop(serial))

    def _overdue(self, serial: int) -> None:
        if serial in self._withheld:
            for client in [client for client in self._clients if client.seen < serial]:
                _log.warning("worker %d did not confirm a change; closing it", client.speaker.worker)
                client.connection.close()
                self._clients.discard(client)
            self._release()

    # -- the dead

    def recover(self) -> None:
        """End what dead workers had in flight. A file whose lock is held belongs to a living one."""
        for dead in dead_files(self._flights):
            power_lost = dead.header.boot_id != boot_id()
            open_requests = self._core.of_incarnation(dead.header.incarnation)
            operations = endings(open_requests, dead.flights(), power_lost=power_lost)
            if operations:
                _log.warning("worker %d died with %d requests in flight", dead.header.worker, len(operations))
            speaker = Speaker(dead.header.worker, dead.header.incarnation)
            for start in range(0, len(operations), BATCH):
                replies = self._core.run([(speaker, op) for op in operations[start : start + BATCH]])
                if any(isinstance(reply, wire.Failed) and reply.code == "unavailable" for reply in replies):
                    return
            if operations:
                reach("ledger.in_recovery")
            dead.remove()

    def recover_orphans(self) -> None:
        """End requests whose flight file is gone altogether: nobody can ever say what became of them.

        A living worker's file always has its name, so this meets only files that someone removed.
        """
        named = {path.stem.rpartition("-")[2] for path in self._flights.glob("*.flight")}
        for incarnation in self._core.incarnations() - named:
            speaker = Speaker(-1, incarnation)
            orphans = [
                wire.Settle(0, request_id, ZERO, "slot", "gateway_crash", "", billed=False)
                for request_id in self._core.of_incarnation(incarnation)
            ]
            _log.error("%d requests of %s have no flight file", len(orphans), incarnation)
            for start in range(0, len(orphans), BATCH):
                self._core.run([(speaker, op) for op in orphans[start : start + BATCH]])

    def _every(self, seconds: float, do: Callable[[], object]) -> None:
        async def again() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    do()
                except Exception:  # noqa: BLE001 - a failure of housekeeping must not end the ledger
                    _log.exception("housekeeping failed")

        task = self._loop.create_task(again())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _matters(op: wire.Run, reply: wire.Reply) -> bool:
    """Whether a command changed what workers keep of keys and prices."""
    result = reply.result if isinstance(reply, wire.Ran) else None
    if isinstance(result, PricesSet):
        return bool(result.versions)
    if isinstance(result, Done):
        return result.changed and isinstance(op.command, RevokeKey | SetBudget | GrantCredit)
    return isinstance(result, Created)

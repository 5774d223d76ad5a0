"""One worker's side of the ledger's socket. May import domain, wire, flight, ipc.

Every operation stays in `_waiting` until it is answered, whatever becomes of its caller or of the connection:
after a reconnect the client first declares what it has in flight, then sends again what is unanswered. Operations
are idempotent by request id, so nothing happens twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import random
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

import msgspec
from headgate_engine import ipc
from headgate_plugin_api import Usage

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain import keys
from headgate_gateway.domain.admission import (
    Admission,
    Claim,
    Extended,
    Granted,
    Principal,
    Refused,
    Replay,
    Settled,
    Settlement,
    Traced,
)
from headgate_gateway.domain.clock import Clock
from headgate_gateway.domain.commands import (
    Command,
    Create,
    Created,
    CreateKey,
    GrantCredit,
    KeyCreated,
    Rejected,
    Result,
    Rotate,
    RotateKey,
)
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.domain.pricing import PriceVersion, quantities
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.answers import admitted, overloaded, rejected, told, unavailable
from headgate_gateway.ledger.flight import DISPATCHED, ENDED, FlightFile
from headgate_gateway.ledger.snapshot import Keys, Prices

SETTLE_WAIT_S: Final = 10.0
WATCH_S: Final = 0.25
"""How often it is looked whose time is up; a caller waits at most so much longer than it should."""

AGAIN_S: Final = 0.25
"""How long an operation rests that the store could not take."""

CONNECT_WAIT_S: Final = 10.0
EXTEND_WAIT_S: Final = 2.0
"""How long a stream waits for room that other requests hold, before it is cut."""

EXTEND_AGAIN_S: Final = 0.1
RECONNECT_S: Final = (0.02, 0.5)
"""First and longest pause between attempts to connect."""

LOOKUPS: Final = 64
"""Key look-ups in flight at most: well-formed false keys come in floods, and must not crowd out admissions."""

GRACE_MS: Final = 500
"""What an admission may take beyond its deadline: the way to the ledger and back."""

_FOREVER: Final = 2**62
_QUESTIONS: Final = frozenset({wire.Identify, wire.Trace})
_LAST_WORDS: Final = frozenset({wire.Denied, wire.Replayed, wire.Recorded, wire.Failed})
"""Answers after which a request is in flight no more, whatever was asked; but for an extension."""

_INVALID: Final = Refused(code="invalid_api_key", message="the key is unknown, revoked or expired")
ALL_SCOPES: Final = frozenset({"inference", "usage", "admin"})


class LedgerUnavailable(Exception):
    """The ledger did not answer in time. A settlement is not lost: it is sent again until it is answered."""


class _Waiting:
    """An operation without an answer yet. Its future gives None when none came until `due`, in loop time.

    It is `resting` after the ledger said that its store could not take it now, until it is sent again.
    """

    __slots__ = ("abandoned", "due", "future", "op", "resting", "sent", "slot")

    def __init__(self, op: Any, future: asyncio.Future[Any], due: float, slot: int | None = None) -> None:
        self.op = op
        self.future = future
        self.due = due
        self.slot = slot
        self.sent = False
        self.abandoned = False
        self.resting = False


class LedgerClient:
    """One worker's connection to the ledger. Reconnects by itself, declares in-flight ids, resends.

    Args:
        layout: Where the socket and the flight files lie.
        worker: Its number; -1 for a client that admits nothing and so needs no flight file.
        clock: The time.
        max_waiting: Operations without an answer at most; more admissions are refused.
        actor: Named in the audit log for commands.
    """

    def __init__(
        self, layout: Layout, *, worker: int, clock: Clock, max_waiting: int = 4096, actor: str = "admin"
    ) -> None:
        self._layout = layout
        self._worker = worker
        self._clock = clock
        self._max_waiting = max_waiting
        self._actor = actor
        self._random = random.SystemRandom()
        self._ids = IdSource(clock, self._random)
        self._codec: ipc.Codec[wire.FromLedger] = ipc.Codec(wire.FromLedger)
        self._connection: ipc.Connection[wire.FromLedger] | None = None
        self._loop = asyncio.get_running_loop()
        self._welcomed = asyncio.Event()
        self._lost = asyncio.Event()
        self._waiting: dict[int, _Waiting] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._next = 0
        self._flight: FlightFile | None = None
        self._slots: dict[str, int] = {}
        self._pepper = b""
        self._admin_digest = b""
        self._prices = Prices()
        self._keys = Keys()
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._runner: asyncio.Task[None] | None = None
        self._usable = True
        self._closing = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            wire.Welcome: self._on_welcome,
            wire.Changed: self._on_changed,
            wire.Store: self._on_store,
            wire.Grant: self._on_admitted,
        }

    # -- life

    async def start(self) -> None:
        """Open the flight file and connect.

        Raises:
            LedgerUnavailable: No ledger answered in time.
            OSError: The flight file cannot be made.
        """
        if self._worker >= 0:
            self._flight = FlightFile(self._layout.flight(self._worker), self._worker)
        self._runner = asyncio.create_task(self._stay_connected())
        try:
            async with asyncio.timeout(CONNECT_WAIT_S):
                await self._welcomed.wait()
        except TimeoutError:
            await self.close()
            raise LedgerUnavailable(f"no ledger answers at {self._layout.ledger_socket}") from None

    async def close(self) -> None:
        """Disconnect. What is still in flight is left to the ledger, which recovers it from the flight file."""
        self._closing = True
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
            await self._connection.closed()
        if self._watch is not None:
            self._watch.cancel()
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.cancel()
        if self._flight is not None:
            self._flight.close()

    @property
    def connected(self) -> bool:
        """Whether the ledger has welcomed this client and the connection stands."""
        return self._welcomed.is_set()

    @property
    def trouble(self) -> str:
        """Why the ledger can decide nothing now, in words that anyone may read; empty when it can."""
        if not self.connected:
            return "the ledger is not there"
        return "" if self._usable else "the ledger cannot use its store; its log says why"

    async def _stay_connected(self) -> None:
        pause = RECONNECT_S[0]
        while not self._closing:
            self._lost.clear()
            try:
                connection = await ipc.connect(
                    self._layout.ledger_socket,
                    self._make_connection,
                )
            except OSError:
                await asyncio.sleep(pause * (0.5 + self._random.random()))
                pause = min(pause * 2, RECONNECT_S[1])
                continue
            self._connection = connection
            incarnation = self._flight.incarnation if self._flight is not None else ""
            with contextlib.suppress(ipc.ConnectionLost):
                connection.send(wire.Hello(wire.PROTOCOL, self._worker, incarnation, list(self._slots)))
            await self._lost.wait()
            if self._connection is connection:
                self._connection = None
            await asyncio.sleep(RECONNECT_S[0])
            pause = RECONNECT_S[0]

    def _make_connection(self) -> ipc.Connection[wire.FromLedger]:
        return ipc.Connection(self._codec, self._on_message, self._on_close)

    def _on_close(self, _connection: ipc.Connection[wire.FromLedger], _error: Exception | None) -> None:
        self._welcomed.clear()
        self._lost.set()

    # -- messages

    def _on_message(self, _connection: ipc.Connection[wire.FromLedger], message: wire.FromLedger) -> None:
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(message)
            return
        waiting = self._waiting.pop(message.n, None)  # type: ignore[union-attr]
        if waiting is None:
            return
        if (
            type(message) is wire.Failed
            and message.code == "unavailable"
            and type(waiting.op) not in _QUESTIONS  # one is not owed; who asks hears it
        ):
            self._retry(waiting)
            return
        if type(message) in _LAST_WORDS and type(waiting.op) is not wire.Extend:
            self._free(waiting)
        if not waiting.future.done():
            waiting.future.set_result(message)

    def _on_admitted(self, grant: wire.Grant) -> None:
        waiting = self._waiting.pop(grant.n, None)
        if waiting is None:
            return
        if waiting.abandoned or waiting.future.done():
            self._post(wire.Void(self._number(), grant.request_id), slot=self._slots.get(grant.request_id))
            return
        waiting.future.set_result(grant)

    def _on_welcome(self, welcome: wire.Welcome) -> None:
        self._pepper = welcome.pepper
        self._admin_digest = welcome.admin_digest
        self._keys.forget(None)
        self._prices.take(welcome.prices)
        self._usable = welcome.usable
        self._welcomed.set()
        for n in sorted(self._waiting):
            waiting = self._waiting[n]
            if waiting.sent and isinstance(waiting.op, wire.Run) and isinstance(waiting.op.command, GrantCredit):
                del self._waiting[n]
                if not waiting.future.done():
                    waiting.future.set_exception(
                        LedgerUnavailable("the connection was lost; look whether the credit was granted")
                    )
                continue
            self._send(waiting)

    def _on_changed(self, changed: wire.Changed) -> None:
        self._keys.forget(changed.keys)
        if changed.prices is not None:
            self._prices.take(changed.prices)
        if self._connection is not None:
            with contextlib.suppress(ipc.ConnectionLost):
                self._connection.send(wire.Seen(changed.serial))

    def _on_store(self, told: wire.Store) -> None:
        self._usable = told.usable

    def _retry(self, waiting: _Waiting) -> None:
        """The store could not take it now; it is still owed, and its caller's time runs on."""
        waiting.resting = True
        self._keep(waiting)
        self._loop.call_later(AGAIN_S, self._again, waiting)

    def _again(self, waiting: _Waiting) -> None:
        if waiting.resting and not self._closing:
            self._send(waiting)

    # -- operations

    def _post(self, op: Any, *, wait_s: float = SETTLE_WAIT_S, slot: int | None = None) -> _Waiting:
        """Keep a numbered operation until it is answered, and send it if there is a connection."""
        loop = self._loop
        waiting = _Waiting(op, loop.create_future(), loop.time() + wait_s, slot)
        self._keep(waiting)
        self._send(waiting)
        return waiting

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _keep(self, waiting: _Waiting) -> None:
        self._waiting[waiting.op.n] = waiting
        if self._watch is None:
            self._watch = self._loop.call_later(WATCH_S, self._watch_waiting)

    def _watch_waiting(self) -> None:
        """Tell callers whose time is up. One timer for all: one for each is a good part of what asking costs."""
        now = self._loop.time()
        for waiting in self._waiting.values():
            if waiting.due <= now and not waiting.future.done():
                waiting.future.set_result(None)
        self._watch = self._loop.call_later(WATCH_S, self._watch_waiting) if self._waiting else None

    def _send(self, waiting: _Waiting) -> None:
        waiting.resting = False
        if self._connection is not None and self._welcomed.is_set():
            try:
                self._connection.send(waiting.op)
            except ipc.ConnectionLost:
                return  # it is sent again on the next connection
            waiting.sent = True

    def _free(self, waiting: _Waiting) -> None:
        request_id = getattr(waiting.op, "request_id", None)
        if request_id is not None:
            slot = self._slots.pop(request_id, None)
            if slot is not None and self._flight is not None:
                self._flight.free(slot)

    async def admit(self, admission: Admission) -> Granted | Replay | Refused:
        """Ask the ledger to admit a request; never raises for what may be expected.

        A caller that is cancelled meanwhile, or gives up at the deadline, leaves nothing behind: what was granted
        is voided when the answer comes.

        Raises:
            ValueError: Quantities or texts that no ledger could keep; whoever decodes requests checks them first.
        """
        if len(self._waiting) >= self._max_waiting:
            return Refused(
                code="overloaded", message="too many requests wait for the ledger", retry_after_ms=1000
            )
        if admission.request_id in self._slots:
            raise ValueError(f"{admission.request_id} is in flight already")
        slot = None
        if self._flight is not None:
            slot = self._flight.take(admission.request_id)
            if slot is None:
                return overloaded("too many requests are in flight")
            self._slots[admission.request_id] = slot
            reach("worker.before_admit")
        wait_s = (admission.deadline_ms + GRACE_MS) / 1000
        waiting = self._post(self._admit_op(admission), wait_s=wait_s, slot=slot)
        try:
            reply = await waiting.future
        except asyncio.CancelledError:
            self._abandon(waiting)
            raise
        if reply is None:
            self._abandon(waiting)
            return Refused(code="ledger_unavailable", message="the ledger does not answer", retry_after_ms=1000)
        if isinstance(reply, wire.Failed) and reply.code == "invalid":
            raise ValueError(reply.message)
        return admitted(reply)

    def _admit_op(self, admission: Admission) -> wire.Admit:
        claim = admission.claim
        return wire.Admit(
            self._number(),
            admission.request_id,
            admission.principal.key_id,
            admission.model,
            admission.task,
            quantities(admission.bound),  # type: ignore[arg-type]
            admission.least_output,
            admission.most_output,
            admission.stream,
            self._clock.now_us() + admission.deadline_ms * 1000,
            claim.key if claim is not None else None,
            claim.fingerprint if claim is not None else b"",
            admission.tags,
        )

    def _abandon(self, waiting: _Waiting) -> None:
        waiting.abandoned = True
        answered = waiting.future.done() and not waiting.future.cancelled()
        reply = waiting.future.result() if answered else None
        if isinstance(reply, wire.Grant):
            self._post(wire.Void(self._number(), reply.request_id), slot=waiting.slot)
        elif reply is None and not waiting.sent:
            self._waiting.pop(waiting.op.n, None)
            self._free(waiting)

    def dispatched(self, request_id: str) -> None:
        """The upstream or engine is about to be asked: from here on a crash leaves a record."""
        if self._flight is not None and (slot := self._slots.get(request_id)) is not None:
            self._flight.write(slot, DISPATCHED)
            reach("worker.after_dispatched")

    def delivered(self, request_id: str, usage: Usage) -> None:
        """Cumulative usage of what was handed to the transport. No system call."""
        if self._flight is not None and (slot := self._slots.get(request_id)) is not None:
            self._flight.write(slot, DISPATCHED, quantities(usage))  # type: ignore[arg-type]

    async def extend(self, request_id: str, output: int) -> Extended:
        """Ask that the hold cover `output` tokens in all; waits shortly for room that other requests hold.

        Raises:
            LedgerUnavailable: The ledger did not answer.
        """
        until = self._clock.monotonic() + EXTEND_WAIT_S
        before = None
        while True:
            reply = await self._ask(wire.Extend(self._number(), request_id, output))
            if not isinstance(reply, wire.Covered):
                raise LedgerUnavailable(f"{request_id} cannot be extended: {reply.message}")
            before = reply.output if before is None else before
            if reply.full or reply.output > before or not reply.others or self._clock.monotonic() >= until:
                return Extended(request_id=request_id, output=reply.output, held=reply.held)
            await asyncio.sleep(EXTEND_AGAIN_S)

    async def settle(self, settlement: Settlement) -> Settled:
        """End a request with its record; returns after COMMIT.

        Raises:
            LedgerUnavailable: No answer within 10 s. It is sent again until there is one; meanwhile the flight
                slot stands for it.
        """
        return self.settled(settlement.request_id, await self.settling(settlement))

    def settling(self, settlement: Settlement) -> asyncio.Future[Any]:
        """Begin to end a request: once this returns the record is owed, whatever becomes of the caller.

        Returns:
            What `settled` reads, once the ledger has answered or did not in 10 s.
        """
        counts = quantities(settlement.usage)
        slot = self._slots.get(settlement.request_id)
        if self._flight is not None and slot is not None:
            self._flight.write(
                slot, ENDED, counts, outcome=settlement.outcome, source=settlement.usage_source,  # type: ignore[arg-type]
                billed=settlement.billed,
            )  # fmt: skip
        reach("worker.before_settle")
        op = wire.Settle(
            self._number(), settlement.request_id, counts, settlement.usage_source, settlement.outcome,  # type: ignore[arg-type]
            settlement.backend, settlement.billed, settlement.first_byte_us,
            msgspec.msgpack.encode(settlement.attempts) if settlement.attempts else b"", settlement.answer,
        )  # fmt: skip
        return self._post(op).future

    def settled(self, request_id: str, reply: Any) -> Settled:
        """What the ledger said to `settling`. Raises what `settle` raises."""
        if not isinstance(reply, wire.Recorded):
            why = "the ledger does not answer" if reply is None else reply.message
            raise LedgerUnavailable(f"{request_id} cannot be settled: {why}")
        return Settled(request_id=reply.request_id, cost=reply.cost, overrun=reply.overrun, price=reply.price)

    async def trace(self, principal: Principal, model: str, claim: Claim) -> Traced | Refused:
        """What became of the request behind a key; `LedgerUnavailable` without an answer in 10 s."""
        return told(
            await self._ask(wire.Trace(self._number(), principal.key_id, model, claim.key, claim.fingerprint))
        )

    async def void(self, request_id: str) -> None:
        """Nothing was dispatched: give back everything that was taken.

        Raises:
            LedgerUnavailable: No answer within 10 s; it is sent again until there is one.
        """
        await self._ask(wire.Void(self._number(), request_id))

    async def _ask(self, op: Any) -> Any:
        # A caller that is cancelled takes only its own future along: the operation stays, and is owed.
        reply = await self._post(op).future
        if reply is None:
            raise LedgerUnavailable("the ledger does not answer")
        return reply

    async def command(self, command: Command) -> Result:
        """Carry out an administrative command.

        Raises:
            LedgerUnavailable: No answer within 10 s; whether it was carried out can be seen by listing.
        """
        if isinstance(command, CreateKey | RotateKey):
            return await self._make_key(command)
        reply = await self._ask(wire.Run(self._number(), command, self._actor))
        result = reply.result if isinstance(reply, wire.Ran) else rejected(reply)
        assert not isinstance(result, Created)
        return result

    async def _make_key(self, command: CreateKey | RotateKey) -> Result:
        secret = keys.generate_key(self._random)
        id_, digest, prefix = self._ids.key(), keys.digest(secret, self._pepper), secret[: keys.PREFIX_LENGTH]
        make: Create | Rotate
        if isinstance(command, RotateKey):
            make = Rotate(id=command.id, successor=id_, digest=digest, prefix=prefix, overlap_s=command.overlap_s)
        else:
            fields = {name: getattr(command, name) for name in command.__struct_fields__ if name != "any_model"}
            make = Create(id=id_, digest=digest, prefix=prefix, **fields)
        reply = await self._ask(wire.Run(self._number(), make, self._actor))
        result = reply.result if isinstance(reply, wire.Ran) else rejected(reply)
        if isinstance(result, Created):
            return KeyCreated(id=result.id, key=secret, project=result.project, organization=result.organization)
        assert isinstance(result, Rejected)
        return result

    # -- the snapshot of keys and prices

    async def authenticate(self, presented: str) -> Principal | Refused:
        """Who a presented key speaks for."""
        if not self._pepper:
            return unavailable()
        mark = sha256(presented.encode("utf-8", "surrogatepass")).digest()
        if (known := self._keys.find(mark)) is not None:
            return known[0] if self._clock.now_us() < known[1] else _INVALID
        digest = keys.digest(presented, self._pepper)
        if self._admin_digest and hmac.compare_digest(digest, self._admin_digest):
            return Principal(key_id="", project_id="", organization_id="", scopes=ALL_SCOPES, admin=True)
        if not keys.well_formed(presented):
            return _INVALID
        if self._keys.is_unknown(digest):
            return _INVALID
        async with self._lookups:
            return await self._look_up(digest, mark) or _INVALID

    async def _look_up(self, digest: bytes, mark: bytes) -> Principal | Refused | None:
        if not self.connected:
            return unavailable()
        generation = self._keys.generation
        try:
            reply = await self._ask(wire.Identify(self._number(), digest))
        except LedgerUnavailable:
            return unavailable()
        if isinstance(reply, wire.Failed):
            return unavailable(f"the ledger cannot say whose key this is: {reply.message}")
        if generation != self._keys.generation:
            return reply.principal if isinstance(reply, wire.Identity) else None
        if not isinstance(reply, wire.Identity) or reply.principal is None:
            self._keys.keep_unknown(digest)
            return None
        self._keys.keep(mark, reply.principal, reply.expires_us or _FOREVER)
        return reply.principal

    def price_of(self, principal: Principal, model: str) -> PriceVersion | None:
        """The price in force, from the snapshot."""
        return self._prices.find(principal, model, self._clock.now_us())

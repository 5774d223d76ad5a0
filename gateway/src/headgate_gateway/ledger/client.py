"""One worker's side of the ledger: what is in flight, who may ask, commands. May import domain, line, flight.

The flight file stands for what is in flight should this process die, the line for what is not answered yet.
"""

from __future__ import annotations

import asyncio
import hmac
import random
from hashlib import sha256
from typing import Any, Final

import msgspec
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
from headgate_gateway.ledger.flight import DISPATCHED, FlightFile, Slot
from headgate_gateway.ledger.line import LedgerUnavailable, Line, Waiting
from headgate_gateway.ledger.snapshot import Keys, Prices

EXTEND_WAIT_S: Final = 2.0
"""How long a stream waits for room that other requests hold, before it is cut."""

EXTEND_AGAIN_S: Final = 0.1

LOOKUPS: Final = 64
"""Key look-ups in flight at most: well-formed false keys come in floods, and must not crowd out admissions."""

LOOKUP_WAIT_S: Final = 10.0
"""How long a look-up may take, with its wait for those before it."""

GRACE_MS: Final = 500
"""What an admission may take beyond its deadline: the way to the ledger and back."""

_FOREVER: Final = 2**62
_LAST_WORDS: Final = frozenset({wire.Denied, wire.Replayed, wire.Recorded})
"""Answers after which a request is in flight no more, whatever was asked."""

_INVALID: Final = Refused(code="invalid_api_key", message="the key is unknown, revoked or expired")
ALL_SCOPES: Final = frozenset({"inference", "usage", "admin"})


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
        self._line = Line(
            layout.ledger_socket,
            hello=self._hello,
            welcomed=self._on_welcome,
            news=self._on_news,
            answered=self._on_answer,
            draw=self._random,
        )
        self._flight: FlightFile | None = None
        self._slots: dict[str, Slot] = {}
        self._pepper = b""
        self._admin_digest = b""
        self._prices = Prices()
        self._keys = Keys()
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._usable = True

    # -- life

    async def start(self) -> None:
        """Open the flight file and connect.

        Raises:
            LedgerUnavailable: No ledger answered in time.
            OSError: The flight file cannot be made.
        """
        if self._worker >= 0:
            self._flight = FlightFile(self._layout.flight(self._worker), self._worker)
        try:
            await self._line.start()
        except LedgerUnavailable:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect. What is still in flight is left to the ledger, which recovers it from the flight file."""
        await self._line.close()
        if self._flight is not None:
            self._flight.close()

    @property
    def connected(self) -> bool:
        """Whether the ledger has welcomed this client and the connection stands."""
        return self._line.stands

    @property
    def trouble(self) -> str:
        """Why the ledger can decide nothing now, in words that anyone may read; empty when it can."""
        if not self.connected:
            return "the ledger is not there"
        return "" if self._usable else "the ledger cannot use its store; its log says why"

    # -- what the ledger says

    def _hello(self) -> wire.Hello:
        incarnation = self._flight.incarnation if self._flight is not None else ""
        return wire.Hello(wire.PROTOCOL, self._worker, incarnation, list(self._slots))

    def _on_welcome(self, welcome: wire.Welcome) -> None:
        self._pepper = welcome.pepper
        self._admin_digest = welcome.admin_digest
        self._keys.forget(None)
        self._prices.take(welcome.prices)
        self._usable = welcome.usable

    def _on_news(self, news: wire.Changed | wire.Store) -> None:
        if isinstance(news, wire.Store):
            self._usable = news.usable
            return
        self._keys.forget(news.keys)
        if news.prices is not None:
            self._prices.take(news.prices)
        self._line.tell(wire.Seen(news.serial))

    def _on_answer(self, waiting: Waiting, answer: Any) -> None:
        kind: type[object] = answer.__class__
        future = waiting.future
        if kind is wire.Grant and (waiting.abandoned or future.done()):
            self._void(answer.request_id)
            return
        if kind in _LAST_WORDS or (kind is wire.Failed and _over(waiting.op, answer)):
            self._free(waiting)
        if not future.done():
            future.set_result(answer)

    # -- operations

    def _void(self, request_id: str) -> None:
        self._line.post(wire.Void(self._line.number(), request_id))

    def _free(self, waiting: Waiting) -> None:
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
        if self._line.unanswered >= self._max_waiting:
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
        waiting = self._line.post(self._admit_op(admission), wait_s=wait_s)
        try:
            reply = await waiting.future
        except asyncio.CancelledError:
            self._abandon(waiting)
            raise
        if reply is None:
            self._abandon(waiting)
            return Refused(code="ledger_unavailable", message="the ledger does not answer", retry_after_ms=1000)
        if type(reply) is wire.Failed and reply.code == "invalid":
            raise ValueError(reply.message)
        return admitted(reply)

    def _admit_op(self, admission: Admission) -> wire.Admit:
        claim = admission.claim
        return wire.Admit(
            self._line.number(),
            admission.request_id,
            admission.principal.key_id,
            admission.model,
            admission.task,
            quantities(admission.bound),
            admission.least_output,
            admission.most_output,
            admission.stream,
            self._clock.now_us() + admission.deadline_ms * 1000,
            claim.key if claim is not None else None,
            claim.fingerprint if claim is not None else b"",
            admission.tags,
            admission.waive,
        )

    def _abandon(self, waiting: Waiting) -> None:
        waiting.abandoned = True
        answered = waiting.future.done() and not waiting.future.cancelled()
        reply = waiting.future.result() if answered else None
        if isinstance(reply, wire.Grant):
            self._void(reply.request_id)
        elif reply is None and not waiting.sent:
            self._line.forget(waiting)
            self._free(waiting)

    def dispatched(self, request_id: str) -> None:
        """The upstream or engine is about to be asked: from here on a crash leaves a record."""
        if self._flight is not None and (slot := self._slots.get(request_id)) is not None:
            self._flight.write(slot, DISPATCHED)
            reach("worker.after_dispatched")

    def delivered(self, request_id: str, usage: Usage) -> None:
        """Cumulative usage of what was handed to the transport. No system call."""
        if self._flight is not None and (slot := self._slots.get(request_id)) is not None:
            self._flight.write(slot, DISPATCHED, quantities(usage))

    async def extend(self, request_id: str, output: int) -> Extended:
        """Ask that the hold cover `output` tokens in all; waits shortly for room that other requests hold.

        Raises:
            LedgerUnavailable: The ledger did not answer.
        """
        until = self._clock.monotonic() + EXTEND_WAIT_S
        before = None
        while True:
            reply = await self._line.ask(wire.Extend(self._line.number(), request_id, output))
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
            self._flight.end(
                slot, counts, settlement.outcome, settlement.usage_source, billed=settlement.billed,
            )  # fmt: skip
        reach("worker.before_settle")
        op = wire.Settle(
            self._line.number(), settlement.request_id, counts, settlement.usage_source, settlement.outcome,
            settlement.backend, settlement.billed, settlement.first_byte_us,
            msgspec.msgpack.encode(settlement.attempts) if settlement.attempts else b"", settlement.answer,
        )  # fmt: skip
        return self._line.post(op).future

    def settled(self, request_id: str, reply: Any) -> Settled:
        """What the ledger said to `settling`. Raises what `settle` raises."""
        if not isinstance(reply, wire.Recorded):
            why = "the ledger does not answer" if reply is None else reply.message
            raise LedgerUnavailable(f"{request_id} cannot be settled: {why}")
        return Settled(request_id=reply.request_id, cost=reply.cost, overrun=reply.overrun, price=reply.price)

    async def trace(self, principal: Principal, model: str, claim: Claim) -> Traced | Refused:
        """What became of the request behind a key; `LedgerUnavailable` without an answer in 10 s."""
        return told(
            await self._line.ask(
                wire.Trace(self._line.number(), principal.key_id, model, claim.key, claim.fingerprint)
            )
        )

    async def void(self, request_id: str) -> None:
        """Nothing was dispatched: give back everything that was taken.

        Raises:
            LedgerUnavailable: No answer within 10 s; it is sent again until there is one.
        """
        await self._line.ask(wire.Void(self._line.number(), request_id))

    async def advance(
        self, consumer: str, position: int, epoch: int | None, error: str = ""
    ) -> tuple[int, int] | None:
        """Say how far a consumer of usage records has come; see `wire.Advance`.

        Returns:
            Where its cursor is now and its epoch; None when it was removed.

        Raises:
            LedgerUnavailable: It was not written; saying it again does no harm.
        """
        reply = await self._line.ask(wire.Advance(self._line.number(), consumer, position, epoch, error))
        if not isinstance(reply, wire.Cursor):
            raise LedgerUnavailable(f"the cursor of {consumer} cannot be moved: {reply.message}")
        return None if reply.position is None else (reply.position, reply.epoch)

    async def command(self, command: Command) -> Result:
        """Carry out an administrative command.

        Raises:
            LedgerUnavailable: No answer within 10 s; whether it was carried out can be seen by listing, and it is
                not tried again.
        """
        if isinstance(command, CreateKey | RotateKey):
            return await self._make_key(command)
        reply = await self._line.ask(wire.Run(self._line.number(), command, self._actor))
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
        reply = await self._line.ask(wire.Run(self._line.number(), make, self._actor))
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
        try:
            async with asyncio.timeout(LOOKUP_WAIT_S), self._lookups:
                return await self._look_up(digest, mark) or _INVALID
        except TimeoutError:
            return unavailable()

    async def _look_up(self, digest: bytes, mark: bytes) -> Principal | Refused | None:
        if not self.connected:
            return unavailable()
        generation = self._keys.generation
        try:
            reply = await self._line.ask(wire.Identify(self._line.number(), digest))
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


def _over(op: Any, failed: wire.Failed) -> bool:
    """Whether a request is in flight no more. One whose end failed is: its slot alone says how it ended."""
    return type(op) is wire.Admit or (type(op) is not wire.Extend and failed.code == "unknown_request")

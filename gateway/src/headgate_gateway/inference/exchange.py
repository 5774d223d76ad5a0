"""One admitted request from dispatch to settlement: the relay, and the one place where it ends.

Whatever happens, an exchange ends exactly once, in a task that no caller's cancellation can reach: settled where
anything was asked of a backend, voided where nothing was. An event counts as delivered when the next one is asked
for, because only then its reader has handed it to the transport; of a whole answer nothing is delivered before it
is settled. May import the rooms below and this room.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec
import structlog
from headgate_plugin_api import (
    BackendError,
    Cancelled,
    EmbedPayload,
    EmbedResult,
    Event,
    Finished,
    InferenceRequest,
    UpstreamTimeout,
    Usage,
    UsageReport,
    UsageSource,
)

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.admission import Admission, Granted, Outcome, Settled, Settlement
from headgate_gateway.domain.clock import Clock
from headgate_gateway.inference.bounds import STEP, Bound
from headgate_gateway.inference.deadlines import Deadlines
from headgate_gateway.inference.dispatch import Dispatch, Trial, outcome_of
from headgate_gateway.inference.meter import Meter, checked
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.models.registry import ServedModel
from headgate_gateway.routing import Router

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are kept for an idempotency key; of larger ones only the claim."""

T = TypeVar("T")

_log = structlog.get_logger("headgate.inference")


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How an exchange is to be settled."""

    outcome: Outcome
    usage: Usage
    source: UsageSource
    billed: bool
    answer: bytes | None = None


class Keeper(Protocol):
    """What an exchange needs of the worker that keeps it; `Inference` is one."""

    ledger: LedgerClient
    router: Router
    clock: Clock
    deadlines: Deadlines

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run work in a task that belongs to the worker, out of reach of any caller's cancellation."""
        ...

    def owe(self, reply: asyncio.Future[Any]) -> None:
        """Something is owed to the ledger: the worker waits for its end, until `paid`."""
        ...

    def paid(self, reply: asyncio.Future[Any]) -> None:
        """What was owed has ended."""
        ...

    def forget(self, exchange: Exchange) -> None:
        """An exchange has ended."""
        ...


class Exchange:
    """One admitted request.

    Attributes:
        request_id: `req_...`.
        model: The configured model id.
        served: The model.
        granted: What the ledger granted.
        price: The pinned price version, None where the model is free for the key.
    """

    _delivered = Usage()
    _extension: asyncio.Task[None] | None = None
    _report: UsageReport | None = None
    _ready: Ending | None = None
    _ending: asyncio.Future[Any] | None = None
    _owed = False
    _waiter: asyncio.Future[None] | None = None
    _settled: Settled | None = None
    _refused = False

    def __init__(
        self,
        keeper: Keeper,
        served: ServedModel,
        request: InferenceRequest,
        admission: Admission,
        bound: Bound,
        granted: Granted,
        began: float,
    ) -> None:
        self.request_id = granted.request_id
        self.model = served.settings.id
        self.served = served
        self.granted = granted
        self.price = granted.price
        self._keeper = keeper
        self._ledger = keeper.ledger
        self._clock = keeper.clock
        self._request = request
        self._claimed = admission.claim is not None
        self._bound = bound
        self._dispatch = Dispatch(served, request, keeper.router, keeper.clock, keeper.deadlines, most=bound.most)
        self._meter = Meter()
        self._covered = granted.output
        self._finished: set[int] = set()
        self._closing: list[Finished] = []
        self._began = began

    # -- facts

    @property
    def backend(self) -> str:
        """The backend that answers, or the last one that was tried."""
        trial, attempts = self._dispatch.trial, self._dispatch.attempts
        if trial is not None:
            return trial.target.backend
        return attempts[-1].backend if attempts else ""

    @property
    def attempts(self) -> int:
        """Tries so far, the one that answers included."""
        return len(self._dispatch.attempts) + (self._dispatch.trial is not None)

    @property
    def usage(self) -> Usage:
        """What is billed as things stand: all of a complete answer, else what was delivered."""
        return self._ready.usage if self._ready is not None else self._delivered

    @property
    def overhead_ms(self) -> float:
        """Milliseconds spent in the gateway: since the request began, without waiting for backends."""
        return max(0.0, self._clock.monotonic() - self._began - self._dispatch.waited_s) * 1000

    @property
    def ended(self) -> bool:
        """Whether settling has begun; then nothing more is relayed."""
        return self._ending is not None

    # -- the way of an answer

    async def start(self) -> None:
        """Dispatch. Returns with the first event of a stream, or all of a whole answer, in hand.

        Raises:
            BackendError: No target answered; the exchange has ended.
        """
        try:
            await self._dispatch.start(partial(self._ledger.dispatched, self.request_id))
        except BackendError as error:
            self._end(self._nothing(error))
            await self._over()
            raise
        except BaseException:
            self._end(self._gone())
            raise
        reach("worker.first_event")

    async def events(self) -> AsyncIterator[Event]:
        """The relay. Ends with one `UsageReport`: the usage that is billed.

        Raises:
            BackendError: The answer broke off; what was delivered has been settled.
            Cancelled: It was cut from our side; as above.
        """
        try:
            while (event := await self._next()) is not None:
                yield event
                self._note_delivered()
            yield self._complete()
        except BackendError as error:
            self._end(self._broken(error))
            await self._over()
            raise
        except BaseException:
            # Cancelled, or closed by a reader that went away. Nothing may be awaited here.
            self._end(self._gone())
            raise

    def whole(self) -> list[Event]:
        """All of a whole answer, as `events` would give it one by one; nothing has to be waited for."""
        events: list[Event] = []
        for event in self._dispatch.take():
            if isinstance(event, UsageReport):
                self._report = event
            else:
                self._meter.add(event)
                events.append(self._signed(event) if isinstance(event, EmbedResult) else event)
        events.append(self._complete())
        return events

    def _signed(self, result: EmbedResult) -> EmbedResult:
        trial, payload = self._dispatch.trial, self._request.payload
        assert trial is not None
        return trial.target.signed(result, payload.dimensions if isinstance(payload, EmbedPayload) else None)

    def relayed(self) -> AsyncGenerator[Event, None]:
        """The relay as the generator that it is: closing it early tells the exchange that nobody reads on."""
        return cast("AsyncGenerator[Event, None]", self.events())

    async def settle(self, answer: bytes | None = None) -> Settled:
        """End a relayed exchange: returns when the record is on disk.

        Call it after the last event: before the first body byte of a whole answer, before the closing chunk of a
        stream.

        Args:
            answer: What is to be replayed for the request's idempotency key.

        Raises:
            RuntimeError: Events are left, or the exchange was abandoned.
            Exception: What the ledger's client raises when no answer came in time; the charge follows the slot.
        """
        if self._ending is None:
            if self._ready is None:
                raise RuntimeError("an exchange is settled after its last event")
            kept = answer if self._claimed and answer is not None and len(answer) <= MAX_ANSWER else None
            self._end(self._ready if kept is None else msgspec.structs.replace(self._ready, answer=kept))
        settled = await self._over()
        if settled is None:
            raise RuntimeError("the exchange was abandoned")
        reach("worker.after_settle")
        return settled

    async def abandon(self) -> None:
        """The client has gone, or the server stops: cancel the backend and settle by the model's policy.

        Idempotent, and safe in a `finally`: of an exchange that has ended it only awaits the end.
        """
        if self._ending is None:
            if self._drains():
                self._end(None)
            else:
                self._end(self._gone())
        # The reason why settling failed was logged; a caller that cleans up can do nothing about it.
        with contextlib.suppress(Exception):
            await self._over()

    def cut(self) -> None:
        """Make the relay fail with `Cancelled` at once, so that its reader can say so to the client."""
        self._dispatch.interrupt()

    # -- relaying

    async def _next(self) -> Event | None:
        """The next event to be relayed, under the hold; None after the last."""
        while self._ready is None:
            event = await self._dispatch.next()
            if event is None:
                return None
            if isinstance(event, UsageReport):
                self._report = event
                continue
            if not self._request.stream:
                self._meter.add(event)
                return event
            if isinstance(event, Finished):
                self._finished.add(event.index)
            self._meter.add(event)
            if await self._held():
                return event
            await self._stop()
        return self._closing.pop(0) if self._closing else None

    async def _held(self) -> bool:
        """Whether the hold covers what is relayed with the newest event; asks early, waits when it must."""
        meter, most = self._meter, self._bound.most
        total = meter.total
        # Pessimistic, where it is time to ask early: a piece is mostly a token.
        early = max(total, meter.pieces) * 4 >= self._covered * 3
        if early and self._covered < most and self._extension is None and not self._refused:
            self._extension = self._keeper.own(self._extend())
        while total > self._covered < most:
            before, asked_now = self._covered, self._extension is None
            if self._extension is None:
                self._extension = self._keeper.own(self._extend())
            await awaited(self._extension)
            # An early question may have had little time to wait for others; one that is asked now has all of it.
            if self._covered <= before and asked_now:
                return False
        if total <= most:
            return True
        # Our estimate may exceed what an honest upstream counts; named tokens and a flood may not.
        return not meter.counted and not self._dispatch.over_limits(meter)

    async def _extend(self) -> None:
        """Ask for the next step. Once refused, it is asked for again only when the hold is used up."""
        covered = self._covered
        try:
            extended = await self._ledger.extend(self.request_id, min(self._bound.most, covered + STEP))
            self._covered = max(covered, extended.output)
        except Exception as error:  # noqa: BLE001 - without the ledger the stream is cut where its hold ends
            _log.warning("extend_failed", request_id=self.request_id, error=str(error))
        finally:
            self._refused = self._covered <= covered
            self._extension = None

    async def _stop(self) -> None:
        """Nothing more is held or allowed: cancel the backend; what was delivered is the answer."""
        outcome: Outcome = "budget_stop" if self._covered < self._bound.most else "ok"
        self._ready = self._partial(outcome, billed=True)
        self._closing = [
            Finished(reason="length", index=index)
            for index in range(self._bound.choices)
            if index not in self._finished
        ]
        await self._dispatch.close()

    def _note_delivered(self) -> None:
        """The event before was handed to the transport."""
        if self._request.stream and self._ready is None:
            early = self._report.usage if self._report is not None else None
            self._delivered = self._meter.delivered(self._bound, early)
            self._ledger.delivered(self.request_id, self._delivered)
            reach("worker.mid_stream")

    def _complete(self) -> UsageReport:
        """The answer is complete: fix its usage."""
        if self._ready is None:
            trial = self._dispatch.trial
            trusted = trial is not None and trial.target.local
            usage, source = checked(self._report, self._meter, self._bound, trusted=trusted)
            self._ready = Ending(outcome="ok", usage=usage, source=source, billed=True)
        extra = self._report.extra if self._report is not None else {}
        return UsageReport(usage=self._ready.usage, source=self._ready.source, extra=extra)

    # -- endings

    def _drains(self) -> bool:
        """Whether a client that left lets the answer run on, for the full price. Not while the server stops."""
        running = self._dispatch.trial is not None and not self._dispatch.cut
        return running and self.served.settings.disconnect == "drain"

    def _nothing(self, error: BackendError) -> Ending:
        """No target answered: the customer pays nothing."""
        outcome: Outcome = "timeout" if isinstance(error, UpstreamTimeout) else "upstream_error"
        last = self._dispatch.attempts[-1].outcome if self._dispatch.attempts else ""
        if last == "engine_crash":
            outcome = "engine_crash"
        elif last == "gateway_stop":
            outcome = "gateway_stop"
        return Ending(outcome=outcome, usage=Usage(), source="estimated", billed=False)

    def _broken(self, error: BackendError) -> Ending:
        """The answer broke off: what was delivered is paid, unless an engine of ours died."""
        trial = self._dispatch.trial
        if self._dispatch.cut and isinstance(error, Cancelled):
            return self._partial("gateway_stop", billed=self.served.settings.disconnect != "waive")
        outcome: Outcome = "upstream_error"
        if trial is not None:
            trial.lease.failed()
            if outcome_of(error, trial.target) == "engine_crash":
                outcome = "engine_crash"
        if isinstance(error, UpstreamTimeout):
            outcome = "timeout"
        return self._partial(outcome, billed=outcome != "engine_crash")

    def _gone(self) -> Ending | None:
        """The client has gone: by policy. None lets the answer run on first."""
        if self._drains():
            return None
        if self._ready is not None and self._request.stream:
            # All of it was handed over before the client went.
            outcome: Outcome = "client_gone" if self._ready.outcome == "ok" else self._ready.outcome
            return msgspec.structs.replace(self._ready, outcome=outcome)
        return self._partial("client_gone", billed=self.served.settings.disconnect != "waive")

    def _partial(self, outcome: Outcome, *, billed: bool) -> Ending:
        delivered, report = self._delivered, self._report
        source = report.source if report is not None and self._meter.counted else "estimated"
        return Ending(outcome=outcome, usage=delivered, source=source, billed=billed and delivered != Usage())

    def _end(self, ending: Ending | None) -> None:
        """Begin the end, once; None means to let the answer run to its own end first."""
        if self._ending is None:
            self._ending = self._at_once(ending) or self._keeper.own(self._finish(ending))

    async def _over(self) -> Settled | None:
        """Wait for the end; None for one without a record. Raises what the ledger's client raises."""
        ending = self._ending
        assert ending is not None
        if not self._owed:
            return await awaited(ending)
        if self._waiter is None and not ending.done():
            self._waiter = ending.get_loop().create_future()
            await self._waiter
        return self._settled or self._ledger.settled(self.request_id, await awaited(ending))

    def _at_once(self, ending: Ending | None) -> asyncio.Future[Any] | None:
        """Begin the end without a task: where nothing need be waited for, the ledger's client owes it at once."""
        trial = self._dispatch.trial
        if ending is None or trial is None or self._extension is not None or not self._dispatch.let_go():
            return None
        self._owed = True
        reply = self._ledger.settling(self._settlement(ending, trial))
        self._keeper.owe(reply)
        reply.add_done_callback(self._answered)
        return reply

    def _answered(self, reply: asyncio.Future[Any]) -> None:
        """The one callback of what is owed: each is a turn of the loop, and most requests pass here."""
        self._keeper.paid(reply)
        self._keeper.forget(self)
        if not reply.cancelled():
            try:
                self._settled = self._ledger.settled(self.request_id, reply.result())
            except Exception as error:  # noqa: BLE001 - whoever waits gets it too, but mostly nobody does
                _log.warning("settle_failed", request_id=self.request_id, error=str(error))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _finish(self, ending: Ending | None) -> Settled | None:
        try:
            if ending is None:
                ending = await self._run_on()
            trial = self._dispatch.trial
            await self._dispatch.close()
            if self._extension is not None:
                await asyncio.wait({self._extension})
            if trial is None and not self._dispatch.asked:
                await self._ledger.void(self.request_id)
                return None
            return await self._ledger.settle(self._settlement(ending, trial))
        except Exception as error:
            # Whoever waits gets it too; but mostly nobody does, and a charge must not fail in silence.
            _log.warning("settle_failed", request_id=self.request_id, error=str(error))
            raise
        finally:
            self._keeper.forget(self)

    def _settlement(self, ending: Ending, trial: Trial | None) -> Settlement:
        attempts = list(self._dispatch.attempts)
        if trial is not None:
            said = self._report.usage if self._report is not None else ending.usage
            attempts.append(trial.attempt(ending.outcome, self._clock.now_us(), said))
        return Settlement(
            request_id=self.request_id,
            usage=ending.usage,
            usage_source=ending.source,
            outcome=ending.outcome,
            backend=attempts[-1].backend if attempts else "",
            attempts=tuple(attempts),
            billed=ending.billed,
            answer=ending.answer,
            first_byte_us=trial.first_us if trial is not None else None,
        )

    async def _run_on(self) -> Ending:
        """Policy `drain`: read the answer to its end without a reader, inside the hold, and bill all of it."""
        try:
            while await self._next() is not None:
                self._note_delivered()
            self._complete()
        except BackendError as error:
            return self._broken(error)
        assert self._ready is not None
        return msgspec.structs.replace(self._ready, outcome="client_gone")


async def awaited(work: asyncio.Future[T]) -> T:
    """What a task brings. Who waits may be cancelled, the task is not: as `asyncio.shield`, in fewer steps."""
    if not work.done():
        waiter: asyncio.Future[None] = work.get_loop().create_future()
        work.add_done_callback(lambda _: None if waiter.done() else waiter.set_result(None))
        await waiter
    return work.result()

"""The use case: resolve the model, bound the request, have it admitted, dispatch it.

May import the rooms below and this room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec
import structlog
from headgate_plugin_api import InferenceRequest, NotReady

from headgate_gateway.crashpoints import reach
from headgate_gateway.domain.admission import Admission, Claim, Granted, Principal, Refused, Replay
from headgate_gateway.domain.clock import Clock
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.inference.bounds import Bound, bound_of, output_limit
from headgate_gateway.inference.deadlines import Deadlines
from headgate_gateway.inference.errors import NotAllowed, Rejected, UnknownModel, WrongTask
from headgate_gateway.inference.exchange import Exchange
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.models.registry import ModelRegistry, ServedModel
from headgate_gateway.routing import Router

T = TypeVar("T")

DRAIN_S: Final = 15.0
"""Seconds that `close` waits for settlements under way; the ledger's own limit for one is 10."""

ADMISSION_MS: Final = 5_000
"""Milliseconds after which an admission that still waits is worthless to anybody."""

_log = structlog.get_logger("headgate.inference")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller wants.

    Attributes:
        principal: Who asks.
        request: What is asked; `max_output` as the caller said it, None when it did not. An empty id gets one.
        claim: Idempotency, when the client sent a key.
        tags: For usage queries.
        deadline_ms: How long the caller still waits; nothing is begun or kept running for it after that.
    """

    principal: Principal
    request: InferenceRequest
    claim: Claim | None = None
    tags: dict[str, str] = {}
    deadline_ms: int | None = None


class Inference:
    """Runs requests. One per worker.

    Args:
        ledger: The worker's ledger client.
        registry: The configured models.
        router: Orders targets.
        clock: Time.
        ids: Makes ids for requests that have none.
    """

    def __init__(
        self, *, ledger: LedgerClient, registry: ModelRegistry, router: Router, clock: Clock, ids: IdSource
    ) -> None:
        self.ledger = ledger
        self.registry = registry
        self.router = router
        self.clock = clock
        self.deadlines = Deadlines()
        self._ids = ids
        self._tasks: set[asyncio.Future[Any]] = set()
        self._open: set[Exchange] = set()

    @property
    def in_flight(self) -> int:
        """Exchanges that have not ended."""
        return len(self._open)

    @property
    def busy(self) -> bool:
        """Whether tasks of the worker are at work: settlements, extensions, answers that run on."""
        return bool(self._tasks)

    async def begin(self, call: Call, admitted: Callable[[Exchange], None] | None = None) -> Exchange | Replay:
        """Admit and dispatch a request; returns when its first event is there.

        The caller relays `events()`, then calls `settle()`; in any other case `abandon()`, best in a `finally`.

        Args:
            call: What is asked.
            admitted: Is shown the exchange before it is dispatched: what was tried in vain can be seen there.

        Raises:
            UnknownModel: No such model.
            WrongTask: The model does something else.
            NotAllowed: The key may not ask for it.
            NotReady: It is loading, or failed.
            Rejected: The ledger refused.
            BackendError: No target answered; nothing is charged.
        """
        began = self.clock.monotonic()
        served = self._resolve(call)
        if served.state != "ready":
            # Nothing is gained by a hold for what cannot run; a model that fails later is met at dispatch.
            because = f": {served.reason}" if served.reason else ""
            raise NotReady(f"the model {call.request.model!r} is {served.state}{because}", retry_after_s=1.0)
        request, bound = self._bounded(call, served)
        admission = Admission(
            request_id=request.id,
            principal=call.principal,
            model=served.settings.id,
            task=request.task,
            bound=bound.usage,
            least_output=bound.least,
            most_output=bound.most,
            stream=request.stream,
            claim=call.claim,
            tags=call.tags,
            deadline_ms=min(ADMISSION_MS, request.timeout_ms),
            waive=served.settings.disconnect == "waive",
        )
        answer = await self.ledger.admit(admission)
        if not isinstance(answer, Granted):
            if isinstance(answer, Refused):
                raise Rejected(answer)
            return answer
        reach("worker.after_admit")
        if not request.stream and bound.limit is not None and answer.output < bound.most:
            # A small budget covers less than the default; the backend may make what is held and no more.
            limit = max(1, answer.output // bound.choices)
            request = msgspec.structs.replace(request, max_output=min(bound.limit, limit))
            bound = msgspec.structs.replace(bound, most=answer.output)
        if call.deadline_ms is not None:
            # The caller waits from when it asked, not from when a hold was granted.
            left_ms = request.timeout_ms - round((self.clock.monotonic() - began) * 1000)
            request = msgspec.structs.replace(request, timeout_ms=max(1, left_ms))
        exchange = Exchange(self, served, request, admission, bound, answer, began)
        self._open.add(exchange)
        if admitted is not None:
            admitted(exchange)
        await exchange.start()
        return exchange

    def bound(self, call: Call) -> Bound:
        """What a request could consume at most if it were begun now. Nothing runs and nothing is held.

        Raises:
            UnknownModel: No such model.
            WrongTask: The model does something else.
            NotAllowed: The key may not ask for it.
            InvalidRequest: It cannot be bounded.
        """
        return self._bounded(call, self._resolve(call))[1]

    def cut_all(self) -> None:
        """The server stops: make every relay fail with `Cancelled`; clients are told and bills settled."""
        for exchange in list(self._open):
            exchange.cut()

    async def close(self) -> None:
        """Cut and abandon what is open; wait, for a bounded time, until all settlements are on disk."""
        self.cut_all()
        for exchange in list(self._open):
            self.own(exchange.abandon())
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=DRAIN_S)

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run work in a task that belongs to the worker, out of reach of any caller's cancellation."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def owe(self, reply: asyncio.Future[Any]) -> None:
        """Something that is owed to the ledger: the worker waits for its end, as for its tasks'."""
        self._tasks.add(reply)

    def paid(self, reply: asyncio.Future[Any]) -> None:
        """What was owed has ended."""
        self._tasks.discard(reply)

    def forget(self, exchange: Exchange) -> None:
        """An exchange has ended."""
        self._open.discard(exchange)

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("background_task_failed", error=repr(error))

    def _resolve(self, call: Call) -> ServedModel:
        """The model, if the caller may ask it for this."""
        asked = call.request.model
        served = self.registry.find(asked)
        if served is None:
            raise UnknownModel(asked)
        principal = call.principal
        if not principal.admin:
            if "inference" not in principal.scopes:
                raise NotAllowed("this key has no right to run models: its scopes lack 'inference'")
            if principal.models is not None and served.settings.id not in principal.models:
                raise NotAllowed(f"this key may not ask for the model {asked!r}")
        if served.settings.task != call.request.task:
            raise WrongTask(asked, asked=call.request.task, serves=served.settings.task)
        return served

    def _bounded(self, call: Call, served: ServedModel) -> tuple[InferenceRequest, Bound]:
        """The request with an id, the model's own name and an explicit output limit; and its bound."""
        given, model = call.request, served.settings
        info = served.info
        limit = output_limit(given, model, info, call.principal)
        timeout_ms = min(given.timeout_ms, round(model.timeout_s * 1000))
        request = msgspec.structs.replace(
            given,
            id=given.id or self._ids.request(),
            model=model.id,
            max_output=limit,
            timeout_ms=timeout_ms if call.deadline_ms is None else min(timeout_ms, call.deadline_ms),
        )
        bound = bound_of(
            request,
            model,
            info,
            served.bound(request),
            call.principal,
            asked=given.max_output is not None,
        )
        return request, bound

"""Trying a model's targets until one has answered; every try is kept for the record.

A stream is decided by its first event. A whole answer is read to its end before anything of it can reach the
client, so that another target can still take over when the first breaks halfway. May import source, deadlines,
routing, domain and the plugin API.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final

import msgspec
import structlog
from headgate_plugin_api import (
    Attempt,
    BackendError,
    Cancelled,
    Event,
    InferenceRequest,
    NotReady,
    Overloaded,
    TextDelta,
    UpstreamFailed,
    UpstreamTimeout,
    Usage,
    UsageReport,
)

from headgate_gateway.domain.admission import shown_target
from headgate_gateway.domain.clock import Clock
from headgate_gateway.inference.deadlines import Deadlines
from headgate_gateway.inference.meter import Meter, recordable
from headgate_gateway.inference.source import Detached, EventSource, Once, Source
from headgate_gateway.models.registry import ServedModel
from headgate_gateway.models.targets import Target
from headgate_gateway.routing import Lease, Router

LOCAL_TRIES: Final = 2
"""A local target is a set of replicas: when one dies before the first byte, another is asked."""

RUNAWAY_BYTES: Final = 256
"""No token of any tokenizer in use is longer; an upstream that sends more per allowed token is cut off."""

RUNAWAY_SLACK: Final = 1 << 20
"""Bytes allowed on top."""

_log = structlog.get_logger("headgate.inference")


class Trial(msgspec.Struct, eq=False):
    """One try at one target, from its first event to whatever ends it."""

    target: Target
    lease: Lease
    source: EventSource[Any]
    started_us: int
    first_us: int | None = None

    def attempt(self, outcome: str, ended_us: int, usage: Usage | None) -> Attempt:
        """The try as it is recorded."""
        return Attempt(
            backend=self.target.backend,
            target=self.target.name,
            outcome=outcome,
            started_us=self.started_us,
            ended_us=ended_us,
            usage=None if usage is None else recordable(usage),
        )


class Dispatch:
    """The tries of one request.

    Attributes:
        model: The configured model id.
        trial: The try under way, or the one that answered.
        buffered: Events that were read and not relayed yet.
        finished: Whether `buffered` is the whole answer.
        attempts: Tries that failed.
        asked: Whether any backend may have worked for this request.
        waited_s: Seconds spent waiting for backends.
        cut: Whether `interrupt` was called.
    """

    trial: Trial | None = None
    finished = False
    asked = False
    waited_s = 0.0
    cut = False

    def __init__(
        self,
        served: ServedModel,
        request: InferenceRequest,
        router: Router,
        clock: Clock,
        deadlines: Deadlines,
        *,
        most: int,
    ) -> None:
        self.model = served.settings.id
        self._served = served
        self._request = request
        self._router = router
        self._clock = clock
        self._deadlines = deadlines
        self._runaway = most * RUNAWAY_BYTES + RUNAWAY_SLACK
        self._drain = served.settings.disconnect == "drain"
        self.buffered: deque[Event] = deque()
        self.attempts: list[Attempt] = []

    async def start(self, dispatched: Callable[[], None]) -> None:
        """Try targets until one has given its first event, or all of a whole answer.

        Args:
            dispatched: Called once, right before the first backend is asked.

        Raises:
            BackendError: What the last try ended with.
        """
        targets, native = self._router.order(self.model, self._served.targets), self._request.native
        if native is not None and native.beyond:  # only who is sent the client's own document can do it
            targets = [target for target in targets if not target.local]
        if not targets:
            raise self._nobody()
        deadline = self._deadlines.now() + self._request.timeout_ms / 1000
        last: BackendError | None = None
        tries = [target for target in targets for _ in range(LOCAL_TRIES if target.local else 1)]
        for number, target in enumerate(tries):
            if last is not None and target is tries[number - 1] and not isinstance(last, UpstreamFailed):
                continue
            lease = self._router.lease(self.model, target)
            if lease is None:
                continue
            if not self.attempts:
                dispatched()
            last = await self._try(target, lease, deadline)
            if last is None:
                return
            if self.cut or not _another_may_do_better(last) or self._deadlines.now() >= deadline:
                raise last
        raise last or self._nobody()

    async def next(self) -> Event | None:
        """The next event of the try that answers."""
        if self.buffered:
            return self.buffered.popleft()
        if self.finished or self.trial is None:
            return None
        before = self._clock.monotonic()
        try:
            return await self.trial.source.next()
        except (UpstreamFailed, UpstreamTimeout) as error:
            self._note(self.trial.target, error)
            raise
        finally:
            self.waited_s += self._clock.monotonic() - before

    def take(self) -> list[Event]:
        """All events of a whole answer, which `start` has read."""
        events = list(self.buffered)
        self.buffered.clear()
        return events

    def interrupt(self) -> None:
        """Cut the answer: a read under way fails with `Cancelled`, and no other target is tried."""
        self.cut = True
        if self.trial is not None:
            self.trial.source.interrupt()

    async def close(self) -> None:
        """Let go of the backend."""
        if self.trial is not None:
            await self.trial.source.close()
            self.trial.lease.ended()

    def let_go(self) -> bool:
        """As `close`, where nothing has to be waited for; else False, and nothing is done."""
        if self.trial is None or not self.trial.source.let_go():
            return False
        self.trial.lease.ended()
        return True

    def over_limits(self, meter: Meter) -> bool:
        """Whether more came than the output limit can explain."""
        return meter.relayed_bytes > self._runaway

    async def _try(self, target: Target, lease: Lease, deadline: float) -> BackendError | None:
        """One try. None when it answered; else why not, with the attempt recorded and the target let go of."""
        started_us = self._clock.now_us()
        request = self._request
        if self.attempts:
            left_ms = max(1, round((deadline - self._deadlines.now()) * 1000))
            request = msgspec.structs.replace(request, timeout_ms=left_ms)
        at_once = not (request.stream or self._drain) and target.answer is not None
        source = self._source(target, request, deadline, at_once=at_once)
        trial = self.trial = Trial(target, lease, source, started_us)
        try:
            await (self._whole(trial) if at_once else self._first(trial))
        except BackendError as error:
            await self._failed(trial, error)
            return error
        lease.succeeded()
        self.asked = True
        return None

    def _source(
        self, target: Target, request: InferenceRequest, deadline: float, *, at_once: bool
    ) -> EventSource[Any]:
        what = _named(target.name, self.model)
        if at_once:
            assert target.answer is not None
            return Source(Once(partial(target.answer, request)), deadline, self._deadlines, what)
        source = Source(target.run(request), deadline, self._deadlines, what)
        return Detached(source) if self._drain else source

    async def _first(self, trial: Trial) -> None:
        """Read what decides whether the target answers: an event, or everything of a whole answer."""
        before = self._clock.monotonic()
        size = 0
        try:
            while True:
                event = await trial.source.next()
                if trial.first_us is None:
                    trial.first_us = self._clock.now_us()
                if event is None:
                    self.finished = True
                    return
                self.buffered.append(event)
                if self._request.stream:
                    return
                size += len(event.text) if isinstance(event, TextDelta) else 0
                if size > self._runaway:
                    raise self._flood(trial)
        finally:
            self.waited_s += self._clock.monotonic() - before

    async def _whole(self, trial: Trial) -> None:
        """Read a whole answer that comes in one piece."""
        before = self._clock.monotonic()
        try:
            self.buffered.extend(await trial.source.next() or ())
        finally:
            self.waited_s += self._clock.monotonic() - before
        self.finished = True
        trial.first_us = self._clock.now_us()
        if sum([len(event.text) for event in self.buffered if isinstance(event, TextDelta)]) > self._runaway:
            raise self._flood(trial)

    def _flood(self, trial: Trial) -> UpstreamFailed:
        return UpstreamFailed(f"target {shown_target(trial.target.name)!r} sent far more than it was asked for")

    def _note(self, target: Target, error: BackendError) -> None:
        """Tell the operator what clients are not told."""
        _log.warning(
            "target failed",
            request_id=self._request.id,
            model=self.model,
            target=target.name,
            error=error.message,
            cause=error.inner,
        )

    async def _failed(self, trial: Trial, error: BackendError) -> None:
        """Record a failed try, once its target was let go of."""
        reports = [event.usage for event in self.buffered if isinstance(event, UsageReport)]
        self.buffered.clear()
        stopped = self.cut and isinstance(error, Cancelled)
        if isinstance(error, UpstreamFailed | UpstreamTimeout | Cancelled):
            self.asked = True
            if not stopped:
                trial.lease.failed()
                self._note(trial.target, error)
        await self.close()
        self.trial = None
        outcome = "gateway_stop" if stopped else outcome_of(error, trial.target)
        self.attempts.append(trial.attempt(outcome, self._clock.now_us(), reports[-1] if reports else None))

    def _nobody(self) -> BackendError:
        wait_s = self._router.wait_s(self.model, [target for target in self._served.targets if target.weight])
        return Overloaded(
            f"every target of the model {self.model!r} failed just now and is left alone for a moment",
            retry_after_s=max(1.0, wait_s),
        )


@lru_cache(maxsize=1024)
def _named(target: str, model: str) -> str:
    """What an error calls a target."""
    return f"target {shown_target(target)!r} of model {model!r}"


def outcome_of(error: BackendError, target: Target) -> str:
    """How an attempt that ended with `error` is named in records."""
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    if isinstance(error, UpstreamFailed | Cancelled):
        return "engine_crash" if target.local else "upstream_error"
    return error.code


def _another_may_do_better(error: BackendError) -> bool:
    """Whether the next target is worth asking. `Cancelled` is what a stopping engine says."""
    if isinstance(error, UpstreamFailed):
        return error.retryable
    return isinstance(error, UpstreamTimeout | Overloaded | NotReady | Cancelled)

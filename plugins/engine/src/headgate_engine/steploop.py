"""The step loop: drives a `StepModel`. Admit while there is room, step, hand out, cancel.

Two threads meet here: the host's loop submits and cancels, the model's thread runs. What they share is behind
one condition; the model itself is only ever touched by its own thread. May import runner, pulse, estimate,
failures and the plugin API.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headgate_plugin_api import (
    Cancelled,
    InferenceRequest,
    NotReady,
    Overloaded,
    Paced,
    StepModel,
    StepOutput,
    UpstreamFailed,
    UpstreamTimeout,
)

from headgate_engine.estimate import estimated_tokens
from headgate_engine.failures import to_wire
from headgate_engine.pulse import Pulse
from headgate_engine.runner import Deliver
from headgate_engine.spec import EngineSpec
from headgate_engine.wire import Events, Failed

log = logging.getLogger(__name__)

EXPIRY_S: Final = 0.25
"""How often deadlines are looked at."""


@dataclass(eq=False, slots=True)
class _Waiting:
    request: InferenceRequest
    deadline: float
    tokens: int


class StepLoop:
    """One step model and its requests."""

    def __init__(
        self,
        model: StepModel,
        spec: EngineSpec,
        deliver: Deliver,
        pulse: Pulse,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._paced = model if isinstance(model, Paced) else None
        self._spec = spec
        self._deliver = deliver
        self._pulse = pulse
        self._clock = clock
        self._changed = threading.Condition()
        # Shared, under the condition:
        self._waiting: dict[str, _Waiting] = {}
        self._tokens = 0
        self._cancelled: list[str] = []
        self._stopping = False
        # The model's thread alone:
        self._running: dict[str, float] = {}
        self._expiry_due = 0.0
        self._outbox: list[Events | Failed] = []

    # -- the host's thread

    @property
    def waiting(self) -> int:
        """See Runner."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """See Runner."""
        return len(self._running)

    def submit(self, request: InferenceRequest) -> None:
        """See Runner."""
        tokens = estimated_tokens(request)
        deadline = self._clock() + request.timeout_ms / 1000
        with self._changed:
            if self._stopping:
                raise NotReady("the model is being unloaded")
            if len(self._waiting) >= self._spec.queue_requests:
                raise self._full(f"{len(self._waiting)} requests")
            if self._waiting and self._tokens + tokens > self._spec.queue_tokens:
                raise self._full(f"about {self._tokens} input tokens")
            self._waiting[request.id] = _Waiting(request, deadline, tokens)
            self._tokens += tokens
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """See Runner."""
        with self._changed:
            self._cancelled.append(request_id)
            self._changed.notify()

    def stop(self) -> None:
        """See Runner."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _full(self, what: str) -> Overloaded:
        ahead = len(self._waiting) + len(self._running)
        return Overloaded(f"{what} wait for {self._spec.id}", retry_after_s=self._pulse.retry_after_s(ahead))

    # -- the model's thread

    def run(self) -> None:
        """See Runner."""
        while True:
            self._await_work()
            if self._stopping:
                break
            self._drop_cancelled()
            self._drop_expired()
            self._admit()
            self._step()
            self._flush()
        self._fail_all(Cancelled("the model is being unloaded"))
        self._flush()

    def _await_work(self) -> None:
        """Wait until there is something to do: a change, room for who waits, or the next step is due."""
        with self._changed:
            while not self._stopping and not self._cancelled:
                if self._waiting and self._model.room > 0:
                    return
                pause_s = self._pause_s()
                if pause_s is not None and pause_s <= 0:
                    return
                self._changed.wait(pause_s)

    def _pause_s(self) -> float | None:
        """Seconds until there is something to do by itself; None when there is nothing at all."""
        if not self._running and not self._waiting:
            return None
        pause_s = self._expiry_due - self._clock()
        if self._running:
            pause_s = min(pause_s, self._paced.idle_s if self._paced is not None else 0.0)
        return pause_s

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
        for request_id in cancelled:
            self._drop(request_id, Cancelled("cancelled by the caller"))

    def _drop_expired(self) -> None:
        now = self._clock()
        if now < self._expiry_due:
            return
        self._expiry_due = now + EXPIRY_S
        with self._changed:
            late = [request_id for request_id, waiting in self._waiting.items() if waiting.deadline <= now]
        late += [request_id for request_id, deadline in self._running.items() if deadline <= now]
        for request_id in late:
            self._drop(request_id, UpstreamTimeout("the answer was not complete in time"))

    def _drop(self, request_id: str, why: Cancelled | UpstreamTimeout) -> None:
        """End a request that waits or runs; one that has ended already is left alone."""
        if self._take(request_id) is not None:
            self._outbox.append(to_wire(request_id, why))
        elif self._running.pop(request_id, None) is not None:
            self._outbox.append(to_wire(request_id, why, self._model.cancel(request_id)))

    def _take(self, request_id: str | None = None) -> _Waiting | None:
        """Take one request out of the queue: the named one, or the oldest."""
        with self._changed:
            if request_id is None:
                request_id = next(iter(self._waiting), None)
            waiting = self._waiting.pop(request_id, None) if request_id is not None else None
            if waiting is not None:
                self._tokens -= waiting.tokens
            return waiting

    def _admit(self) -> None:
        while self._model.room > 0 and (waiting := self._take()) is not None:
            request_id = waiting.request.id
            self._pulse.begin()
            try:
                self._model.admit(waiting.request)
            except Exception as error:  # noqa: BLE001 - one request's failure is an answer, not the loop's end
                self._refuse(request_id, error)
            else:
                self._running[request_id] = waiting.deadline
            self._pulse.end(0)

    def _step(self) -> None:
        if not self._running:
            return
        self._pulse.begin()
        before = len(self._running)
        try:
            for output in self._model.step():
                self._take_output(output)
        except Exception as error:  # the step is shared: nobody's answer can be trusted after it
            log.exception("%s: a step failed; its %d requests fail", self._spec.id, len(self._running))
            self._fail_all(UpstreamFailed(f"the model failed: {type(error).__name__}: {error}"), waiting=False)
        self._pulse.end(before - len(self._running))

    def _take_output(self, output: StepOutput) -> None:
        if output.request_id not in self._running:
            return
        if output.error is not None:
            del self._running[output.request_id]
            if output.events:
                self._outbox.append(Events(output.request_id, output.events))
            self._refuse(output.request_id, output.error)
        elif output.events or output.done:
            if output.done:
                del self._running[output.request_id]
            self._outbox.append(Events(output.request_id, output.events, output.done))

    def _refuse(self, request_id: str, error: Exception) -> None:
        failed = to_wire(request_id, error)
        if failed.code == UpstreamFailed.code:
            log.error("%s: request %s failed: %r", self._spec.id, request_id, error, exc_info=error)
        self._outbox.append(failed)

    def _fail_all(self, why: Cancelled | UpstreamFailed, *, waiting: bool = True) -> None:
        for request_id in list(self._running):
            del self._running[request_id]
            try:
                usage = self._model.cancel(request_id)
            except Exception as error:  # noqa: BLE001 - the model is broken already; the callers must hear it
                log.warning("%s: cancelling %s failed: %r", self._spec.id, request_id, error)
                usage = None
            self._outbox.append(to_wire(request_id, why, usage))
        while waiting and (entry := self._take()) is not None:
            self._outbox.append(to_wire(entry.request.id, why))

    def _flush(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._deliver(outbox)

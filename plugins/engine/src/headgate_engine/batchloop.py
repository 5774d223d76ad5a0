"""The batch loop: drives a `BatchModel`. Prepare beside it, run the batcher's choice, isolate what fails.

Three kinds of threads meet here: the host's loop submits and cancels, a small pool prepares and finishes, the
model's thread runs batches. What they share is behind one condition. May import batcher, runner, pulse,
estimate, failures and the plugin API.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headgate_plugin_api import (
    BackendError,
    BatchModel,
    Cancelled,
    InferenceRequest,
    NotReady,
    UpstreamTimeout,
)

from headgate_engine.batcher import Batcher, Job, Slot
from headgate_engine.estimate import estimated_tokens
from headgate_engine.failures import to_wire
from headgate_engine.pulse import Pulse
from headgate_engine.runner import Deliver
from headgate_engine.spec import EngineSpec
from headgate_engine.wire import Events

log = logging.getLogger(__name__)


class BatchLoop:
    """One batch model and its requests."""

    def __init__(
        self,
        model: BatchModel,
        spec: EngineSpec,
        deliver: Deliver,
        pulse: Pulse,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._spec = spec
        self._deliver = deliver
        self._pulse = pulse
        self._clock = clock
        self._changed = threading.Condition()
        self._batcher = Batcher(spec)
        self._jobs: dict[str, Job] = {}
        self._stopping = False
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="prepare")

    # -- the host's thread

    @property
    def waiting(self) -> int:
        """See Runner."""
        return self._batcher.requests

    @property
    def running(self) -> int:
        """See Runner."""
        return max(0, len(self._jobs) - self._batcher.requests)

    def submit(self, request: InferenceRequest) -> None:
        """See Runner."""
        job = Job(request, self._clock() + request.timeout_ms / 1000, estimated_tokens(request))
        with self._changed:
            if self._stopping:
                raise NotReady("the model is being unloaded")
            self._batcher.reserve(job, self._pulse.retry_after_s(len(self._jobs)))
            self._jobs[request.id] = job
            self._pool.submit(self._prepare, job)

    def cancel(self, request_id: str) -> None:
        """See Runner."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._fail(job, Cancelled("cancelled by the caller"))

    def stop(self) -> None:
        """See Runner."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    # -- the pool's threads

    def _prepare(self, job: Job) -> None:
        if job.ended:
            return
        try:
            items = tuple(self._model.prepare(job.request))
        except BaseException as error:  # noqa: BLE001 - in a pool's thread nobody else would ever see it
            self._fail(job, error)
            return
        with self._changed:
            if self._jobs.get(job.request.id) is not job:
                return  # it has ended while it was prepared
            self._batcher.add(job, items)
            self._changed.notify()
        if not items:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        if job.ended:
            return
        try:
            events = tuple(self._model.finish(job.request, job.items, job.results))
        except BaseException as error:  # noqa: BLE001 - as above
            self._fail(job, error)
        else:
            if self._end(job):
                self._deliver([Events(job.request.id, events, done=True)])

    # -- any thread

    def _end(self, job: Job) -> bool:
        """Mark a job as ended; False when it was already, and then nothing may go out for it."""
        with self._changed:
            if job.ended:
                return False
            job.ended = True
            self._batcher.discard(job)
            self._jobs.pop(job.request.id, None)
            return True

    def _fail(self, job: Job, error: BaseException) -> None:
        if not self._end(job):
            return
        if not isinstance(error, BackendError):
            log.error("%s: request %s failed: %r", self._spec.id, job.request.id, error, exc_info=error)
        self._deliver([to_wire(job.request.id, error)])

    # -- the model's thread

    def run(self) -> None:
        """See Runner."""
        while self._await_batch():
            self._drop_expired()
            with self._changed:
                batch = self._batcher.form()
            if batch:
                self._run(batch)
        # `submit` uses the pool under the condition and only before `stop`, so nobody finds it shut.
        self._pool.shutdown(wait=True, cancel_futures=True)
        for job in list(self._jobs.values()):
            self._fail(job, Cancelled("the model is being unloaded"))

    def _await_batch(self) -> bool:
        """Wait until a batch can be formed; False when the loop is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._batcher.ready)
            return not self._stopping

    def _drop_expired(self) -> None:
        with self._changed:
            late = self._batcher.expired(self._clock())
        for job in late:
            self._fail(job, UpstreamTimeout("the model did not come to it in time"))

    def _run(self, batch: Sequence[Slot]) -> None:
        self._pulse.begin()
        results = self._results(batch)
        complete: list[Job] = []
        for slot, result in zip(batch, results, strict=True):
            if isinstance(result, _Failure):
                self._fail(slot.job, result.error)
            elif not slot.job.ended:
                slot.job.results[slot.place] = result
                slot.job.missing -= 1
                if not slot.job.missing:
                    complete.append(slot.job)
        self._pulse.end(len(complete))
        for job in complete:
            self._pool.submit(self._finish, job)

    def _results(self, batch: Sequence[Slot]) -> list[Any]:
        """One result for each slot. A failing batch is halved until what fails stands alone."""
        live = [slot for slot in batch if not slot.job.ended]
        if len(live) < len(batch):
            found = dict(zip(live, self._results(live), strict=True)) if live else {}
            return [found.get(slot) for slot in batch]
        try:
            results = list(self._model.run_batch([slot.item for slot in batch]))
            if len(results) != len(batch):
                raise RuntimeError(f"run_batch gave {len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 - whose fault it is shows when the halves run
            if len(batch) == 1:
                self._fail(batch[0].job, error)
                return [_Failure(error)]
            log.warning("%s: a batch of %d failed (%r); halving it", self._spec.id, len(batch), error)
            middle = len(batch) // 2
            return self._results(batch[:middle]) + self._results(batch[middle:])
        return results


class _Failure:
    """Stands where a result would."""

    def __init__(self, error: Exception) -> None:
        self.error = error

"""The micro-batcher's mind: what waits, and which of it runs together next. No threads, no clock, no model.

There is no time window: whoever drives the model asks for the next batch when the model is idle, and gets the
best one that can be made of what is there. May import the plugin API.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from headgate_plugin_api import InferenceRequest, Item, Overloaded

from headgate_engine.spec import EngineSpec

LOOK_AHEAD: Final = 1024
"""Waiting items, oldest first, among which the next batch is chosen."""


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the batcher.

    Attributes:
        deadline: When its answer is worthless, on the driver's clock.
        tokens: What it still holds of the queue's tokens: an estimate until it is prepared.
        slots: Its items as they were queued.
        waiting: How many of them are still there.
        missing: Items without a result.
        ended: An answer, a failure or a cancellation has gone out; whatever comes now is dropped.
    """

    request: InferenceRequest
    deadline: float
    tokens: int
    items: Sequence[Item] = ()
    slots: list[Slot] = field(default_factory=list["Slot"])
    results: list[Any] = field(default_factory=list[Any])
    waiting: int = 0
    missing: int = 0
    ended: bool = False


@dataclass(eq=False, slots=True, frozen=True)
class Slot:
    """One item of a job, waiting or running."""

    job: Job
    item: Item
    place: int


class Batcher:
    """A bounded queue of items, and the choice of the next batch.

    A batch holds items of equal shape whose padded cost, longest x count, is within `max_batch_tokens`. It is
    grown around the *oldest* waiting item by items of similar length, so padding is little and nothing can
    starve: whatever is oldest is in the next batch.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        # Both ordered by arrival. An OrderedDict, because the oldest of a plain dict is slow to find after many
        # deletions in front of it.
        self._queue: OrderedDict[Slot, None] = OrderedDict()
        self._placed: OrderedDict[Job, None] = OrderedDict()
        self._tokens = 0

    @property
    def requests(self) -> int:
        """Requests that wait, in preparation or in the queue."""
        return len(self._placed)

    @property
    def ready(self) -> bool:
        """Whether a batch can be formed now."""
        return bool(self._queue)

    def reserve(self, job: Job, retry_after_s: float) -> None:
        """Take a place in the queue for a job that is about to be prepared.

        Raises:
            Overloaded: It is full, by requests or by tokens. A request that is larger than the whole queue
                is taken when nothing else waits.
        """
        spec = self._spec
        if len(self._placed) >= spec.queue_requests:
            raise Overloaded(f"{len(self._placed)} requests wait for {spec.id}", retry_after_s=retry_after_s)
        if self._placed and self._tokens + job.tokens > spec.queue_tokens:
            raise Overloaded(f"{self._tokens} input tokens wait for {spec.id}", retry_after_s=retry_after_s)
        self._placed[job] = None
        self._tokens += job.tokens

    def add(self, job: Job, items: Sequence[Item]) -> None:
        """Queue the items of a job that has been prepared; its estimate gives way to the count."""
        tokens = sum(item.tokens for item in items)
        self._tokens += tokens - job.tokens
        job.tokens = tokens
        job.items = items
        job.waiting = job.missing = len(items)
        job.results = [None] * len(items)
        job.slots = [Slot(job, item, place) for place, item in enumerate(items)]
        self._queue.update(dict.fromkeys(job.slots))
        if not items:
            self._release(job)

    def discard(self, job: Job) -> None:
        """Drop a job's waiting items, and its place if it still has one."""
        for slot in job.slots:
            self._queue.pop(slot, None)
        job.slots = []
        job.waiting = 0
        if job in self._placed:
            self._release(job)

    def _release(self, job: Job) -> None:
        del self._placed[job]
        self._tokens -= job.tokens
        job.tokens = 0

    def expired(self, now: float) -> list[Job]:
        """Waiting jobs whose deadline has passed."""
        return [job for job in self._placed if job.deadline <= now]

    def form(self) -> list[Slot]:
        """Take the next batch out of the queue; empty only when the queue is."""
        if not self._queue:
            return []
        batch = self._choose()
        for slot in batch:
            del self._queue[slot]
        self._account(batch)
        return batch

    def _choose(self) -> list[Slot]:
        oldest = next(iter(self._queue))
        window = [slot for slot in self._window() if slot.item.shape == oldest.item.shape]
        window.sort(key=lambda slot: slot.item.tokens)
        low = window.index(oldest)
        high = low + 1
        while high - low < self._spec.max_batch_items:
            low, high, grown = self._grow(window, low, high)
            if not grown:
                break
        return window[low:high]

    def _grow(self, window: Sequence[Slot], low: int, high: int) -> tuple[int, int, bool]:
        """Widen the slice by the neighbour that wastes less padding, if the budget allows it."""
        count, longest = high - low, window[high - 1].item.tokens
        budget = self._spec.max_batch_tokens
        shorter = window[low - 1].item.tokens if low else None
        longer = window[high].item.tokens if high < len(window) else None
        shorter_fits = shorter is not None and (count + 1) * longest <= budget
        longer_fits = longer is not None and (count + 1) * longer <= budget
        if shorter_fits and longer_fits:
            assert shorter is not None
            assert longer is not None
            longer_fits = count * (longer - longest) < longest - shorter
        if longer_fits:
            return low, high + 1, True
        return (low - 1, high, True) if shorter_fits else (low, high, False)

    def _window(self) -> Iterable[Slot]:
        return (slot for slot, _ in zip(self._queue, range(LOOK_AHEAD), strict=False))

    def _account(self, batch: Sequence[Slot]) -> None:
        """What runs no longer waits; a request waits until the last of its items was taken."""
        for slot in batch:
            job = slot.job
            job.tokens -= slot.item.tokens
            self._tokens -= slot.item.tokens
            job.waiting -= 1
            if not job.waiting:
                self._release(job)

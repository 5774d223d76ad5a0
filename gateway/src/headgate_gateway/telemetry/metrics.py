"""Prometheus metrics of a worker, added up over all workers.

Every worker writes files in one folder (`Layout.metrics`); whichever is asked for `/metrics` adds them up. The
supervisor names that folder in `PROMETHEUS_MULTIPROC_DIR` before a worker starts, because prometheus_client
reads it when it is imported; without it, metrics are this process's own. Labels are bounded: a model is one of
the config or `other`. Metrics are for looking at, records are for billing. May import disk,
prometheus_client and the plugin API.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

import structlog
from headgate_plugin_api import DIMENSIONS, Usage
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from headgate_gateway.disk import allocate

M = TypeVar("M", Counter, "_Spread")

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
MAX_LABEL: Final = 64
"""Distinct values of a label that is not known beforehand; the next ones count as `other`."""

MOST_ATTEMPTS: Final = 5
"""Attempts from this number on are counted together."""

FLUSH_S: Final = 0.5
FILE_BYTES: Final = 64 * 1024
"""Of a file of metrics at first: a few dozen models. It doubles."""

_AROUND_KEY: Final = 32
"""Bytes that a key's length, padding, value and time take at most."""

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_OVERHEAD: Final = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)

_log = structlog.get_logger("headgate.metrics")


class Solid(MmapedDict):
    """A file of metrics without holes, so that a full disk costs metrics and not the process."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            with Path(filename).open("ab") as file:
                allocate(file.fileno(), FILE_BYTES)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _AROUND_KEY > self._capacity:
            assert self._f is not None, "the file of a worker's metrics is open for as long as the worker runs"
            allocate(self._f.fileno(), 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


class _Value(Protocol):
    """A number in the library's own keeping."""

    def inc(self, amount: float) -> None: ...


class _Spread(Histogram):
    """A histogram that takes many values at once; the library has only a call for each, which writes twice."""

    _upper_bounds: list[float]
    _sum: _Value
    _buckets: list[_Value]

    def observe_all(self, amounts: list[float]) -> None:
        """Take all of them, and none again."""
        if not amounts:
            return
        self._sum.inc(sum(amounts))
        for bucket, count in Tally(map(partial(bisect_left, self._upper_bounds), amounts)).items():
            self._buckets[bucket].inc(count)


def pin_process() -> None:
    """Tell prometheus_client that this process does not fork. Call it before any metric is made.

    Else it asks for the process id at every single count: a system call, and a sixth of a worker's time.
    """
    values.MmapedDict = Solid  # type: ignore[attr-defined]
    if values.ValueClass is not values.MutexValue:
        process = os.getpid()
        values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


class _Collected:
    """What was counted of one model since the last writing."""

    __slots__ = ("codes", "cost", "first", "seconds", "usages")

    def __init__(self) -> None:
        self.codes: defaultdict[str, int] = defaultdict(int)
        self.seconds: list[float] = []
        self.first: list[float] = []
        self.usages: list[Usage] = []
        self.cost = 0


class Metrics:
    """What a worker counts.

    Args:
        models: Configured model ids: the only values of the `model` label, besides `other`.
        folder: Where workers' metrics are added up; None for this process alone.
        later: Calls something after so many seconds, an event loop's `call_later`. Counts are then collected and
            written once every `FLUSH_S`, because writing each is a tenth of a worker's time. Without it they are
            written at once.
    """

    def __init__(
        self, models: Collection[str], folder: Path | None = None, *, later: Callable[..., Any] | None = None
    ) -> None:
        self._later = later
        self._planned = False
        self._came = 0
        self._overheads: list[float] = []
        self._overs: defaultdict[str, int] = defaultdict(int)
        self._collected: defaultdict[str, _Collected] = defaultdict(_Collected)
        self._models = frozenset(models)
        self._codes: set[str] = set()
        self._parts: dict[tuple[Counter | _Spread, tuple[str, ...]], Counter | _Spread] = {}
        self._folder = folder
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "headgate_requests", "Requests answered, by error code or ok.", ["model", "code"], registry=registry
        )
        self._seconds = _Spread(
            "headgate_request_seconds",
            "From the request's first byte to the answer's last.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = _Spread(
            "headgate_first_event_seconds",
            "Until the first event of the answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._overhead = _Spread(
            "headgate_overhead_seconds", "What the gateway itself took.", buckets=_OVERHEAD, registry=registry
        )
        self._usage = Counter(
            "headgate_usage", "Units consumed, by dimension.", ["model", "dimension"], registry=registry
        )
        self._cost = Counter("headgate_cost_nano", "Captured, in nano-units.", ["model"], registry=registry)
        self._repeated = Counter(
            "headgate_repeated_attempts",
            "Requests that their client had sent before, by the number of the attempt.",
            ["attempt"],
            registry=registry,
        )
        self._over = Counter(
            "headgate_over_budget", "Requests under a soft budget that was spent.", ["scope"], registry=registry
        )
        self._ledger = Gauge(
            "headgate_ledger_ready",
            "Whether the ledger is there and reaches its store, 1 or 0.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._in_flight = Gauge(
            "headgate_requests_in_flight",
            "Requests being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._cost.labels(OTHER)  # so that the counters' file is there like the others', before a disk is full

    def began(self) -> None:
        """A request came in."""
        self._came += 1
        if not self._planned:
            self._plan()

    def ended(self, model: str, code: str, seconds: float) -> None:
        """A request is answered; `code` is `ok` or the error code of interface.md."""
        collected = self._collected[model if model in self._models else OTHER]
        self._came -= 1
        collected.codes[code if code in self._codes else self._code(code)] += 1
        collected.seconds.append(seconds)
        if not self._planned:
            self._plan()

    def repeated(self, attempt: int) -> None:
        """A client sends a request again, for the `attempt`-th time."""
        self._repeated.labels(str(attempt) if attempt < MOST_ATTEMPTS else f"{MOST_ATTEMPTS}+").inc()

    def over_budget(self, scope: str) -> None:
        """A request went through under a soft budget that was spent, `key:month` for example."""
        self._overs[scope] += 1
        if not self._planned:
            self._plan()

    def first_event(self, model: str, seconds: float) -> None:
        """The first event of an answer went out."""
        self._collected[model if model in self._models else OTHER].first.append(seconds)
        if not self._planned:
            self._plan()

    def consumed(self, model: str, usage: Usage, cost: int, overhead: float) -> None:
        """A request was settled: its usage, its cost in nano-units, the seconds that the gateway itself took."""
        collected = self._collected[model if model in self._models else OTHER]
        collected.usages.append(usage)
        collected.cost += cost
        self._overheads.append(overhead)
        if not self._planned:
            self._plan()

    def ledger(self, *, ready: bool) -> None:
        """Whether the ledger can decide now, as the worker that is asked for metrics knows it."""
        self._ledger.set(ready)

    def flush(self) -> None:
        """Write what was collected; on the thread that counts. What cannot be written is not kept."""
        self._planned = False
        try:
            self._write()
        except OSError as error:
            _log.warning("metrics_lost", error=str(error))
        self._overheads.clear()
        self._overs.clear()
        self._collected.clear()

    def _write(self) -> None:
        self._in_flight.inc(self._came)
        self._came = 0
        self._overhead.observe_all(self._overheads)
        for scope, count in self._overs.items():
            self._of(self._over, scope).inc(count)
        for model, collected in self._collected.items():
            for code, count in collected.codes.items():
                self._of(self._requests, model, code).inc(count)
            self._of(self._seconds, model).observe_all(collected.seconds)
            self._of(self._first, model).observe_all(collected.first)
            for dimension in DIMENSIONS:
                quantity = sum(map(attrgetter(dimension), collected.usages))
                if quantity > 0:
                    self._of(self._usage, model, dimension).inc(quantity)
            if collected.cost > 0:
                self._of(self._cost, model).inc(collected.cost)

    def render(self) -> bytes:
        """The metrics of all workers in Prometheus' text format. Reads files: not on the event loop.

        Call `flush` before, on the loop; other workers' counts are up to `FLUSH_S` old.
        """
        if self._folder is None:
            return generate_latest(self._registry)
        added_up = CollectorRegistry()
        MultiProcessCollector(added_up, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(added_up)

    def _plan(self) -> None:
        """See that what was collected is written soon."""
        if self._later is None:
            self.flush()
        elif not self._planned:
            self._planned = True
            self._later(FLUSH_S, self.flush)

    def _of(self, metric: M, *labels: str) -> M:
        """The part of a metric that has these labels. Kept, because finding it costs more than counting."""
        place = (metric, labels)
        part = self._parts.get(place)
        if part is None:
            part = self._parts[place] = metric.labels(*labels)
        return cast("M", part)

    def _code(self, code: str) -> str:
        if code not in self._codes:
            if len(self._codes) >= MAX_LABEL:
                return OTHER
            self._codes.add(code)
        return code

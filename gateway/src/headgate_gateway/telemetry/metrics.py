"""Prometheus metrics of a worker, added up over all workers.

Every worker writes files in one folder (`Layout.metrics`); whichever is asked for `/metrics` adds them up. The
supervisor names that folder in `PROMETHEUS_MULTIPROC_DIR` before a worker starts, because prometheus_client
reads it when it is imported; without it, metrics are this process's own. Labels are bounded: a model is one of
the config or `other`. Metrics are for looking at, records are for billing. May import prometheus_client.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
MAX_LABEL: Final = 64
"""Distinct values of a label that is not known beforehand; the next ones count as `other`."""

MOST_ATTEMPTS: Final = 5
"""Attempts from this number on are counted together."""

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_OVERHEAD: Final = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)


def pin_process() -> None:
    """Tell prometheus_client that this process does not fork. Call it before any metric is made.

    Else it asks for the process id at every single count: a system call, and a sixth of a worker's time.
    """
    if values.ValueClass is not values.MutexValue:
        process = os.getpid()
        values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


class Metrics:
    """What a worker counts.

    Args:
        models: Configured model ids: the only values of the `model` label, besides `other`.
        folder: Where workers' metrics are added up; None for this process alone.
    """

    def __init__(self, models: Collection[str], folder: Path | None = None) -> None:
        self._models = frozenset(models)
        self._codes: set[str] = set()
        self._folder = folder
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "headgate_requests", "Requests answered, by error code or ok.", ["model", "code"], registry=registry
        )
        self._seconds = Histogram(
            "headgate_request_seconds",
            "From the request's first byte to the answer's last.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "headgate_first_event_seconds",
            "Until the first event of the answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._overhead = Histogram(
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
        self._in_flight = Gauge(
            "headgate_requests_in_flight",
            "Requests being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def began(self) -> None:
        """A request came in."""
        self._in_flight.inc()

    def ended(self, model: str, code: str, seconds: float) -> None:
        """A request is answered; `code` is `ok` or the error code of interface.md."""
        self._in_flight.dec()
        self._requests.labels(self._model(model), self._code(code)).inc()
        self._seconds.labels(self._model(model)).observe(seconds)

    def repeated(self, attempt: int) -> None:
        """A client sends a request again, for the `attempt`-th time."""
        self._repeated.labels(str(attempt) if attempt < MOST_ATTEMPTS else f"{MOST_ATTEMPTS}+").inc()

    def first_event(self, model: str, seconds: float) -> None:
        """The first event of an answer went out."""
        self._first.labels(self._model(model)).observe(seconds)

    def overhead(self, seconds: float) -> None:
        """What the gateway itself took of a request."""
        self._overhead.observe(seconds)

    def consumed(self, model: str, usage: dict[str, int], cost: int) -> None:
        """A request was settled: its quantities by dimension, and its cost in nano-units."""
        for dimension, quantity in usage.items():
            if quantity > 0:
                self._usage.labels(self._model(model), dimension).inc(quantity)
        if cost > 0:
            self._cost.labels(self._model(model)).inc(cost)

    def render(self) -> bytes:
        """The metrics of all workers in Prometheus' text format. Reads files: not on the event loop."""
        if self._folder is None:
            return generate_latest(self._registry)
        added_up = CollectorRegistry()
        MultiProcessCollector(added_up, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(added_up)

    def _model(self, model: str) -> str:
        return model if model in self._models else OTHER

    def _code(self, code: str) -> str:
        if code not in self._codes:
            if len(self._codes) >= MAX_LABEL:
                return OTHER
            self._codes.add(code)
        return code

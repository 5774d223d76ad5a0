"""Prometheus metrics of what consumers of usage records take; added up with the workers' (see `metrics`).

May import metrics and prometheus_client.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

_LABELS: Final = ["consumer"]


class Consumption:
    """What is counted of consumers. Their names are plugins', so they are few."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._failures = Counter(
            "headgate_consumer_failures", "Times that a consumer's hook raised.", _LABELS, registry=registry
        )
        self._records = Gauge(
            "headgate_consumer_lag_records",
            "Usage records that a consumer has not taken yet, as far as they are counted.",
            _LABELS,
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._seconds = Gauge(
            "headgate_consumer_lag_seconds",
            "How long ago the oldest of these was finished.",
            _LABELS,
            registry=registry,
            multiprocess_mode="mostrecent",
        )

    def failed(self, consumer: str) -> None:
        """A hook raised."""
        self._failures.labels(consumer).inc()

    def lag(self, consumer: str, records: int, seconds: float) -> None:
        """How far a consumer is behind."""
        self._failures.labels(consumer)  # there from the beginning, at 0
        self._records.labels(consumer).set(records)
        self._seconds.labels(consumer).set(seconds)

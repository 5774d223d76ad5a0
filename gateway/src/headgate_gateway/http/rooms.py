"""The rooms that the handlers reach, in one object that `app.create_app` fills.

May import the rooms below.
"""

from __future__ import annotations

from dataclasses import dataclass

from headgate_gateway.admin.usage import UsageReader
from headgate_gateway.domain.clock import Clock
from headgate_gateway.inference.service import Inference
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.models.registry import ModelRegistry
from headgate_gateway.settings import Settings
from headgate_gateway.streams import Siblings, Streams
from headgate_gateway.telemetry.metrics import Metrics


@dataclass(frozen=True)
class Rooms:
    """What a handler may ask."""

    settings: Settings
    layout: Layout
    ledger: LedgerClient
    inference: Inference
    registry: ModelRegistry
    usage: UsageReader
    metrics: Metrics
    clock: Clock
    streams: Streams
    siblings: Siblings
    started_s: int
    """When this worker started, Unix seconds."""

    @property
    def max_body(self) -> int:
        """Bytes that a body may have."""
        return self.settings.server.max_body_mb * 1024 * 1024

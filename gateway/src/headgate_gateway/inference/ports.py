"""What this room needs of its neighbours, as protocols: the ledger's client, models and their targets.

The real ones are `ledger.client.LedgerClient` and `models.registry`. May import domain, settings and the plugin
API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from headgate_plugin_api import Event, InferenceRequest, ModelInfo, Usage

from headgate_gateway.domain.admission import Admission, Extended, Granted, Refused, Replay, Settled, Settlement
from headgate_gateway.settings import Model


class Clock(Protocol):
    """The injected clock."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps."""
        ...


class IdSource(Protocol):
    """Makes ids."""

    def request(self) -> str:
        """A new request id."""
        ...


class Ledger(Protocol):
    """A worker's connection to the ledger, as far as one request needs it."""

    async def admit(self, admission: Admission) -> Granted | Replay | Refused:
        """Ask for a hold. A caller cancelled meanwhile leaves none behind."""
        ...

    def dispatched(self, request_id: str) -> None:
        """Note in the flight slot that a backend is about to be asked."""
        ...

    def delivered(self, request_id: str, usage: Usage) -> None:
        """Note in the flight slot what was handed to the transport so far."""
        ...

    async def extend(self, request_id: str, output: int) -> Extended:
        """Ask that the hold cover `output` tokens in all."""
        ...

    async def settle(self, settlement: Settlement) -> Settled:
        """End the request with a record; returns after the commit."""
        ...

    async def void(self, request_id: str) -> None:
        """End a request of which nothing was consumed."""
        ...


class Target(Protocol):
    """Anything that a request can be sent to: a set of local replicas, or a remote target."""

    @property
    def name(self) -> str:
        """Names it among the model's targets."""
        ...

    @property
    def backend(self) -> str:
        """The backend's name."""
        ...

    @property
    def priority(self) -> int:
        """Lower is tried first."""
        ...

    @property
    def weight(self) -> int:
        """Its share among targets of equal priority; 0 takes it out."""
        ...

    @property
    def local(self) -> bool:
        """Whether it runs in an engine of ours."""
        ...

    def run(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """Ask it. Closing the iterator early cancels."""
        ...


class ServedModel(Protocol):
    """One configured model."""

    @property
    def settings(self) -> Model:
        """Its table of the config."""
        ...

    @property
    def targets(self) -> Sequence[Target]:
        """Where it is answered."""
        ...

    @property
    def state(self) -> str:
        """`ready` when any target is."""
        ...

    @property
    def reason(self) -> str:
        """Why it is not ready, if anybody knows."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """What is known of it; None for remote models and until a local one was ready once."""
        ...

    def bound(self, request: InferenceRequest) -> Usage | None:
        """The backend's own upper bound, or None for the general one."""
        ...


class Registry(Protocol):
    """All configured models."""

    def find(self, model_id: str) -> ServedModel | None:
        """By id or alias."""
        ...

"""What a request can be sent to: the replicas of a local model, or a target at a provider.

May import the engine client and the plugin API.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, Protocol, cast

import msgspec
from headgate_plugin_api import (
    EmbedResult,
    EngineBackend,
    Event,
    InferenceRequest,
    ModelInfo,
    ModelSpec,
    NotReady,
    RemoteBackend,
    RemoteModel,
    TargetSpec,
    Usage,
    WholeAnswers,
)

from headgate_gateway.models.engine_client import ClientState, EngineClient

STALLED_MS: Final = 30_000
"""A model's loop that has been in one pass for this long counts as hung."""

_BEST_FIRST: Final[tuple[ClientState, ...]] = (
    "ready",
    "loading",
    "failed",
    "stopping",
    "unreachable",
    "unloaded",
)

Answer = Callable[[InferenceRequest], Awaitable[Sequence[Event]]]


class Target(Protocol):
    """One place where a model is answered. `priority` and `weight` are the config's."""

    name: str
    backend: str
    priority: int
    weight: int
    local: bool

    @property
    def state(self) -> ClientState:
        """Whether it is worth asking: `ready` is; a remote target always is, as far as is known here."""
        ...

    @property
    def reason(self) -> str:
        """Why it failed; empty otherwise."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """What is known of the model there."""
        ...

    def bound(self, request: InferenceRequest) -> Usage | None:
        """The backend's upper bound of what the request can consume, if it has one."""
        ...

    def run(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """Ask it. Closing the iterator early cancels. Raises the plugin API's errors."""
        ...

    @property
    def answer(self) -> Answer | None:
        """Asks it for all events of a whole answer at once, where it can. Raises the plugin API's errors."""
        ...

    def signed(self, result: EmbedResult, dimensions: int | None) -> EmbedResult:
        """Vectors with the fingerprint of what made them: the config's where it has one, else the backend's."""
        ...

    async def close(self) -> None:
        """Free what was taken."""
        ...


def _signed(result: EmbedResult, fingerprint: str, dimensions: int | None) -> EmbedResult:
    """Under a name that is not the backend's own; vectors that were asked for shorter are another thing."""
    name = fingerprint if dimensions is None else f"{fingerprint}:{dimensions}"
    return msgspec.structs.replace(result, fingerprint=name)


class Replicas:
    """The engines of one local model, shared by every target that leads to it."""

    def __init__(self, spec: ModelSpec, backend: EngineBackend, clients: Sequence[EngineClient]) -> None:
        self.spec = spec
        self.backend = backend
        self.clients = clients
        self._turn = 0

    @property
    def best(self) -> EngineClient:
        """The replica that is furthest: what is said of the model is said of that one."""
        return min(self.clients, key=lambda client: _BEST_FIRST.index(client.state))

    @property
    def state(self) -> ClientState:
        """Ready when any replica is; a hung one counts as failed."""
        if self.best.state == "ready" and not self._usable():
            return "failed"
        return self.best.state

    @property
    def reason(self) -> str:
        """Why no replica is ready; empty when one is."""
        best = self.best
        if best.state == "ready" and not self._usable():
            return f"the model's loop has been in one pass for {best.stalled_ms // 1000} s"
        return best.reason

    @property
    def info(self) -> ModelInfo | None:
        """What the model last said of itself."""
        return next((client.info for client in self.clients if client.info is not None), None)

    def choose(self) -> EngineClient:
        """The ready replica with the least in flight; equal ones take turns.

        Raises:
            NotReady: None is ready.
        """
        usable = self._usable()
        if not usable:
            because = f": {self.reason}" if self.reason else ""
            raise NotReady(f"model {self.spec.id} is {self.state}{because}")
        self._turn += 1
        turned = usable[self._turn % len(usable) :] + usable[: self._turn % len(usable)]
        return min(turned, key=lambda client: client.in_flight)

    def _usable(self) -> list[EngineClient]:
        return [client for client in self.clients if client.state == "ready" and client.stalled_ms < STALLED_MS]


class LocalTarget:
    """A local model's replicas, as a target."""

    local = True
    answer: Answer | None = None

    def __init__(
        self, replicas: Replicas, *, priority: int = 0, weight: int = 1, fingerprint: str | None = None
    ) -> None:
        self.name = f"{replicas.spec.backend}:{replicas.spec.id}"
        self.backend = replicas.spec.backend
        self.priority = priority
        self.weight = weight
        self._replicas = replicas
        self._fingerprint = fingerprint

    @property
    def state(self) -> ClientState:
        """See Target."""
        return self._replicas.state

    @property
    def reason(self) -> str:
        """See Target."""
        return self._replicas.reason

    @property
    def info(self) -> ModelInfo | None:
        """See Target."""
        return self._replicas.info

    def bound(self, request: InferenceRequest) -> Usage | None:
        """See Target."""
        replicas = self._replicas
        return replicas.backend.bound(request, replicas.spec, replicas.info)

    async def run(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """See Target."""
        async with aclosing(self._replicas.choose().run(request)) as events:
            async for event in events:
                yield event

    def signed(self, result: EmbedResult, dimensions: int | None) -> EmbedResult:
        """See Target."""
        return result if self._fingerprint is None else _signed(result, self._fingerprint, dimensions)

    async def close(self) -> None:
        """See Target. The engines are the registry's to disconnect."""


class RemoteTarget:
    """A model at a provider."""

    local = False
    state: ClientState = "ready"
    reason = ""
    info: ModelInfo | None = None

    def __init__(
        self,
        name: str,
        spec: TargetSpec,
        backend: RemoteBackend,
        model: RemoteModel,
        *,
        priority: int = 0,
        weight: int = 1,
        fingerprint: str | None = None,
    ) -> None:
        self.name = name
        self.backend = spec.backend
        self.priority = priority
        self.weight = weight
        self._spec = spec
        self._backend = backend
        self._model = model
        self._fingerprint = fingerprint
        self.answer: Answer | None = model.answer if isinstance(model, WholeAnswers) else None

    def bound(self, request: InferenceRequest) -> Usage | None:
        """See Target."""
        return self._backend.bound(request, self._spec)

    def run(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """See Target."""
        # The contract says that closing it early cancels, so it is a generator.
        return cast("AsyncGenerator[Event, None]", self._model.run(request))

    def signed(self, result: EmbedResult, dimensions: int | None) -> EmbedResult:
        """See Target. Where nobody says, it is what the provider knows the model by."""
        if self._fingerprint is None and result.fingerprint:
            return result
        name = self._fingerprint or f"{self._spec.upstream_model} of {self.backend}"
        return _signed(result, name, dimensions)

    async def close(self) -> None:
        """See Target."""
        await self._model.close()

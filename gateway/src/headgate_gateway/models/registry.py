"""The registry: the configured models, by id and alias, each with the targets that it can be sent to.

May import settings, layout, the rest of this room and the plugin API; never an engine's inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

from headgate_plugin_api import DIMENSIONS, Backend, InferenceRequest, ModelInfo, Upstream, Usage

from headgate_gateway import settings as config
from headgate_gateway.layout import Layout
from headgate_gateway.models.engine_client import ClientState, EngineClient
from headgate_gateway.models.errors import MisconfiguredModel
from headgate_gateway.models.specs import engine_spec, target_name, target_spec
from headgate_gateway.models.targets import LocalTarget, RemoteTarget, Replicas, Target

HEARD_S: Final = 2.0
"""How long engines may take to say where they stand before a worker serves without knowing."""


class ServedModel:
    """One configured model: its settings, and where it is answered.

    Attributes:
        local: Whether no provider is asked for it.
    """

    def __init__(self, settings: config.Model, targets: Sequence[Target], replicas: Replicas | None) -> None:
        self.settings = settings
        self.targets = targets
        self.replicas = replicas
        self.local = all(target.local for target in targets)

    @property
    def id(self) -> str:
        """The configured id."""
        return self.settings.id

    @property
    def state(self) -> ClientState:
        """`ready` when any target is, else what the first one is."""
        for target in self.targets:
            if target.state == "ready":
                return "ready"
        return self.targets[0].state

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is, or when nobody knows."""
        return "" if self.state == "ready" else self.targets[0].reason

    @property
    def was_ready(self) -> bool:
        """Whether it was ready once, or is not wanted to be: what `/health/ready` asks of a required model."""
        return not self.local or self.state in ("ready", "unloaded") or self._engine_was_ready()

    @property
    def info(self) -> ModelInfo | None:
        """What is known of the model, from the first target that knows anything."""
        for target in self.targets:
            if (info := target.info) is not None:
                return info
        return None

    def bound(self, request: InferenceRequest) -> Usage | None:
        """An upper bound over every target that the request may reach; None when any of them has none."""
        if len(self.targets) == 1:
            return self.targets[0].bound(request)
        bounds = [target.bound(request) for target in self.targets]
        most: dict[str, int] = {}
        for bound in bounds:
            if bound is None:
                return None
            for name in DIMENSIONS:
                most[name] = max(most.get(name, 0), getattr(bound, name))
        return Usage(**most)

    def _engine_was_ready(self) -> bool:
        return self.replicas is not None and any(client.was_ready for client in self.replicas.clients)


class ModelRegistry:
    """All configured models. Made once per worker; `start` connects to the engines, but waits for no load.

    Args:
        settings: The config.
        layout: Where the engines' sockets lie.
        backends: Every backend that the config names, by name.
        upstream: The HTTP client for remote backends; None when there are none.
        secrets: Resolves `env:`, `file:` and `cmd:` references.
        random: Spreads reconnects.
        clock: Monotonic seconds.

    Raises:
        MisconfiguredModel: A model or target names what is not there.
    """

    def __init__(
        self,
        settings: config.Settings,
        layout: Layout,
        backends: Mapping[str, Backend],
        upstream: Upstream | None,
        secrets: Callable[[str], str],
        *,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slot = settings.slot
        self._backends = backends
        self._upstream = upstream
        self._secrets = secrets
        self._random = random if random is not None else Random()  # noqa: S311 - spreads reconnects, no secret
        self._clock = clock
        self._changed = asyncio.Event()
        self._replicas = {
            model.id: self._make_replicas(number, model, layout)
            for number, model in enumerate(settings.models)
            if model.backend is not None
        }
        self._models = {model.id: self._make_model(number, model) for number, model in enumerate(settings.models)}
        self._names = {alias: served for served in self._models.values() for alias in served.settings.aliases}
        self._names |= self._models

    async def start(self) -> None:
        """Begin to connect to every engine, and hear where those stand that are there already.

        A worker that takes another's place would else begin by refusing what is ready.
        """
        for client in self._clients():
            await client.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARD_S):
                await asyncio.gather(*(client.known.wait() for client in self._clients()))

    async def close(self) -> None:
        """Disconnect from engines and providers; what is in flight fails."""
        for client in self._clients():
            await client.close()
        for served in self._models.values():
            for target in served.targets:
                await target.close()

    def find(self, model_id: str) -> ServedModel | None:
        """A model by id or alias."""
        return self._names.get(model_id)

    def all(self) -> Sequence[ServedModel]:
        """Every model, in the order of the config."""
        return tuple(self._models.values())

    async def changed(self) -> None:
        """Wait until any engine's state changes."""
        await self._changed.wait()

    def _clients(self) -> list[EngineClient]:
        return [client for replicas in self._replicas.values() for client in replicas.clients]

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _make_replicas(self, number: int, model: config.Model, layout: Layout) -> Replicas:
        assert model.backend is not None
        backend = self._backend(model.backend, f"models[{number}].backend")
        if backend.kind != "engine":
            raise MisconfiguredModel(
                f"backend {model.backend!r} is remote; name it in [[models.targets]]",
                path=f"models[{number}].backend",
            )
        clients = [
            EngineClient(
                layout.engine_socket(self._slot(model.id), replica),
                name=f"{model.id}/{replica}",
                random=self._random,
                clock=self._clock,
                on_change=self._note_change,
                unloaded=layout.engine_unloaded(self._slot(model.id)),
                ready_once=layout.engine_was_ready(self._slot(model.id)),
            )
            for replica in range(model.replicas)
        ]
        return Replicas(engine_spec(model), backend, clients)

    def _make_model(self, number: int, model: config.Model) -> ServedModel:
        replicas = self._replicas.get(model.id)
        targets: list[Target] = [LocalTarget(replicas)] if replicas is not None else []
        for place, target in enumerate(model.targets):
            targets.append(self._make_target(model, target, f"models[{number}].targets[{place}]"))
        if not targets:
            raise MisconfiguredModel("expected a backend or at least one target", path=f"models[{number}]")
        return ServedModel(model, tuple(targets), replicas)

    def _make_target(self, model: config.Model, target: config.Target, path: str) -> Target:
        backend = self._backend(target.backend, f"{path}.backend")
        if backend.kind == "engine":
            replicas = self._replicas.get(target.model or "")
            if replicas is None:
                raise MisconfiguredModel(
                    f"expected the id of a local model of this config, got {target.model!r}", path=f"{path}.model"
                )
            return LocalTarget(
                replicas, priority=target.priority, weight=target.weight, fingerprint=target.fingerprint
            )
        if self._upstream is None:
            raise MisconfiguredModel("no HTTP client was given for remote backends", path=f"{path}.backend")
        spec = target_spec(model, target, self._secrets)
        return RemoteTarget(
            target_name(target, spec.upstream_model),
            spec,
            backend,
            backend.connect(spec, self._upstream),
            priority=target.priority,
            weight=target.weight,
            fingerprint=target.fingerprint,
        )

    def _backend(self, name: str, path: str) -> Backend:
        backend = self._backends.get(name)
        if backend is None:
            known = ", ".join(sorted(self._backends)) or "none"
            raise MisconfiguredModel(f"unknown backend {name!r}; known: {known}", path=path)
        return backend

"""From the config to what plugins are given: engine specs and target specs.

May import settings, the plugin API and the engine's spec.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from headgate_engine.spec import EngineSpec
from headgate_plugin_api import TargetSpec

from headgate_gateway.models.errors import MisconfiguredModel
from headgate_gateway.settings import Model, Target


def engine_spec(model: Model) -> EngineSpec:
    """What the engines of a local model are started with; the supervisor writes it as JSON.

    Raises:
        MisconfiguredModel: The model has no backend of its own.
    """
    if model.backend is None:
        raise MisconfiguredModel("expected a backend; this model has only targets", path=f"models.{model.id}")
    return EngineSpec(
        id=model.id,
        task=model.task,
        backend=model.backend,
        source=model.source,
        device=model.device,
        version=model.version,
        options=model.options,
        max_input_tokens=model.max_input_tokens,
        max_output_tokens=model.max_output_tokens,
        queue_requests=model.queue_requests,
        queue_tokens=model.queue_tokens,
    )


def target_spec(model: Model, target: Target, secrets: Callable[[str], str]) -> TargetSpec:
    """What a remote backend is given for one target, its credential resolved."""
    return TargetSpec(
        model=model.id,
        task=model.task,
        backend=target.backend,
        upstream_model=target.model or model.id,
        base_url=target.base_url or "",
        api_key=None if target.api_key is None else secrets(target.api_key),
        options=target.options,
        timeout_s=target.timeout_s if target.timeout_s is not None else model.timeout_s,
    )


def target_name(target: Target, upstream_model: str) -> str:
    """How a remote target is called in records, headers and logs: never with anything secret in it."""
    host = urlsplit(target.base_url).netloc.rpartition("@")[2] if target.base_url else ""
    return f"{target.backend}:{upstream_model}@{host}" if host else f"{target.backend}:{upstream_model}"

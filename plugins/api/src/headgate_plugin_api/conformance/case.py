"""What a plugin hands to the suite. May import the plugin API."""

from __future__ import annotations

from dataclasses import dataclass, field

from headgate_plugin_api.backend import EngineBackend, ModelSpec
from headgate_plugin_api.requests import InferenceRequest


@dataclass(frozen=True, kw_only=True)
class BadRequest:
    """A request that must be refused; `path` is what the refusal must name, None leaves that open."""

    request: InferenceRequest
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class BackendCase:
    """One backend with one model, and what to ask of it.

    Attributes:
        backend: The object that the plugin registers.
        spec: What to load; small enough for a test.
        requests: Good requests with distinct ids, at least two; text requests with `max_output` set. Their
            answers must be repeatable (no sampling, or a seed).
        bad: Requests that must be refused with `InvalidRequest`.
        tolerance: How far numbers of the same answer may be apart, because batches of different shapes add up
            floats in different orders.
        exact_bound: Whether `bound` must equal what is used, instead of only never being lower.
    """

    backend: EngineBackend
    spec: ModelSpec
    requests: tuple[InferenceRequest, ...]
    bad: tuple[BadRequest, ...] = field(default=())
    tolerance: float = 1e-4
    exact_bound: bool = False

    def __post_init__(self) -> None:
        ids = [request.id for request in (*self.requests, *(bad.request for bad in self.bad))]
        if len(self.requests) < 2:
            raise ValueError("a BackendCase needs at least two good requests, so that they can meet in a batch")
        if len(set(ids)) < len(ids):
            raise ValueError("the requests of a BackendCase need distinct ids")

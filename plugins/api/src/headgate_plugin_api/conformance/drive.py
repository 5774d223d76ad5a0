"""Asking a loaded model directly, the way a host does, only one thing at a time. May import the plugin API."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from headgate_plugin_api.backend import BatchModel, Item, LoadedModel, Paced, StepModel
from headgate_plugin_api.events import Event
from headgate_plugin_api.requests import InferenceRequest

PATIENCE_S: Final = 60.0
"""How long a step model may take for the answers of one test."""


def answers(model: LoadedModel, requests: Sequence[InferenceRequest]) -> Mapping[str, list[Event]]:
    """The whole answers to requests that run together, by request id."""
    if isinstance(model, StepModel):
        for request in requests:
            model.admit(request)
        return finish_steps(model, {request.id for request in requests})
    prepared = {request.id: tuple(model.prepare(request)) for request in requests}
    results = run_together(model, [item for items in prepared.values() for item in items])
    return {
        request.id: list(
            model.finish(
                request, prepared[request.id], [results[request.id, item.index] for item in prepared[request.id]]
            )
        )
        for request in requests
    }


def run_together(model: BatchModel, items: Sequence[Item]) -> dict[tuple[str, int], Any]:
    """Run items in as few batches as their shapes allow; results by request id and index."""
    by_shape: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        by_shape.setdefault(item.shape, []).append(item)
    results: dict[tuple[str, int], Any] = {}
    for batch in by_shape.values():
        made = model.run_batch(batch)
        assert len(made) == len(batch), f"run_batch gave {len(made)} results for {len(batch)} items"
        for item, result in zip(batch, made, strict=True):
            results[item.request.id, item.index] = result
    return results


def finish_steps(model: StepModel, wanted: set[str]) -> dict[str, list[Event]]:
    """Step until those requests are done. Steps of a paced model wait until they are due."""
    events: dict[str, list[Event]] = {request_id: [] for request_id in wanted}
    missing = set(wanted)
    give_up = time.monotonic() + PATIENCE_S
    while missing:
        assert time.monotonic() < give_up, f"{sorted(missing)} were not done within {PATIENCE_S} s"
        if isinstance(model, Paced):
            time.sleep(model.idle_s)
        for output in model.step():
            assert output.error is None, f"{output.request_id} failed: {output.error!r}"
            assert output.request_id in missing, f"output for {output.request_id}, which is not admitted"
            events[output.request_id] += output.events
            if output.done:
                missing.remove(output.request_id)
    return events

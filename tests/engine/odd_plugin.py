"""A plugin whose models misbehave as their spec's source says. Installed for a test's engine process only."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from headgate_plugin_api import (
    Backend,
    EmbedPayload,
    EmbedResult,
    Event,
    InferenceRequest,
    Item,
    LoadedModel,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    ModelSpec,
    Report,
    Task,
    TextDelta,
    Usage,
    UsageReport,
    hookimpl,
)

HEADGATE_API = int(os.environ.get("ODD_API", "1"))


class Options(msgspec.Struct, forbid_unknown_fields=True):
    pass


class OddModel:
    def __init__(self, source: str) -> None:
        self.info = ModelInfo(detail=source)

    def prepare(self, request: InferenceRequest) -> Sequence[Item]:
        assert isinstance(request.payload, EmbedPayload)
        if request.payload.inputs[0] == "exit early":
            sys.exit("in prepare")
        return [Item(request=request, index=0, tokens=1, data=request.payload.inputs[0])]

    def run_batch(self, items: Sequence[Item]) -> Sequence[Any]:
        for item in items:
            if item.data == "hang":
                time.sleep(3600)
            if item.data == "exit":
                sys.exit("in run_batch")
        return [item.data for item in items]

    def finish(self, request: InferenceRequest, items: Sequence[Item], results: Sequence[Any]) -> Sequence[Event]:
        if results == ["object"]:
            return [TextDelta(text="", extra={"it": object()})]
        if results == ["giant"]:
            return [EmbedResult(vectors=(bytes(80 * 1024 * 1024),))]
        if results == ["modules"]:
            return [TextDelta(text=" ".join(sys.modules)), UsageReport(usage=Usage())]
        return [EmbedResult(vectors=(bytes(4),)), UsageReport(usage=Usage(input=1))]

    def close(self) -> None:
        sys.stderr.write("closed\n")


class OddBackend:
    name = "odd"
    kind: Literal["engine"] = "engine"
    tasks: frozenset[Task] = frozenset({"embed"})
    options_type = Options

    def load(self, spec: ModelSpec, report: Report) -> LoadedModel:
        report(LoadProgress(fraction=0.5, what="half way"))
        if spec.source == "slow":
            time.sleep(3600)
        if spec.source == "missing":
            raise LoadFailed("/models/weights.bin does not exist")
        if spec.source == "exit":
            sys.exit("a library thinks it is alone")
        if spec.source == "crash":
            raise ZeroDivisionError("in the weights")
        return OddModel(spec.source or "")

    def bound(self, request: InferenceRequest, spec: ModelSpec, info: ModelInfo | None) -> Usage | None:
        return None


@hookimpl
def headgate_register_backends(register: Callable[[Backend], None]) -> None:
    register(OddBackend())

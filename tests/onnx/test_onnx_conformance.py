from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from headgate_onnx.backend import OnnxBackend
from headgate_onnx.tensors import to_tensor
from headgate_plugin_api import (
    ChatPayload,
    EmbedPayload,
    InferenceRequest,
    InferPayload,
    Message,
    Payload,
    Tensor,
)
from headgate_plugin_api.conformance import BackendCase, BadRequest, BatchConformance

from tests.onnx.conftest import spec


def request(request_id: str, payload: Payload, **options: object) -> InferenceRequest:
    return InferenceRequest(id=request_id, model="m", payload=payload, options=options)


class TestEmbed(BatchConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls, minilm_folder: Path) -> BackendCase:
        return BackendCase(
            backend=OnnxBackend(),
            spec=spec(minilm_folder, "embed", options={"threads": 1}),
            requests=(
                request("one", EmbedPayload(inputs=("The gate lets water in.",))),
                request("many", EmbedPayload(inputs=("a", "naïve №5 ﷺ 灌溉", "water " * 120, "  "))),
                request("long", EmbedPayload(inputs=("water " * 999,), truncate="END")),
                request("ids", EmbedPayload(inputs=((101, 4937, 102), "cat"))),
            ),
            bad=(
                BadRequest(request=request("empty", EmbedPayload(inputs=("a", ""))), path="input[1]"),
                BadRequest(request=request("too long", EmbedPayload(inputs=("water " * 999,))), path="input[0]"),
                BadRequest(request=request("typo", EmbedPayload(inputs=("a",)), x=1), path="options.x"),
                BadRequest(request=request("chat", ChatPayload(messages=(Message(role="user", content="a"),)))),
            ),
        )


class TestInfer(BatchConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls, digits_folder: Path) -> BackendCase:
        def pixels(rows: int) -> Tensor:
            return to_tensor("X", "FP32", np.random.default_rng(rows).integers(0, 17, (rows, 64)).astype("<f4"))

        return BackendCase(
            backend=OnnxBackend(),
            spec=spec(digits_folder, "infer", options={"threads": 1}),
            requests=(
                request("one", InferPayload(inputs=(pixels(1),))),
                request("seven", InferPayload(inputs=(pixels(7),), outputs=("label",))),
                request("none", InferPayload(inputs=(pixels(0),))),
            ),
            bad=(
                BadRequest(request=request("nothing", InferPayload(inputs=())), path="inputs"),
                BadRequest(request=request("embed", EmbedPayload(inputs=("a",)))),
            ),
        )

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    EmbedPayload,
    ImagePart,
    InferenceRequest,
    Message,
    ModelSpec,
    Payload,
    Sampling,
    Task,
    Tool,
)
from headgate_plugin_api.conformance import BackendCase, BadRequest, EngineConformance
from headgate_torch.backend import TorchBackend

TINY_LM = Path(__file__).parents[2] / "examples" / "models" / "tiny-lm"
GREEDY = Sampling(temperature=0)
SEEDED = Sampling(temperature=0.9, top_p=0.95, seed=11)


def request(request_id: str, payload: Payload, max_output: int = 24, **options: object) -> InferenceRequest:
    return InferenceRequest(
        id=request_id, model="tiny-lm", payload=payload, max_output=max_output, options=options
    )


def chat(*texts: str, sampling: Sampling = GREEDY, **more: Any) -> ChatPayload:
    messages = tuple(Message(role="user", content=text) for text in texts)
    return ChatPayload(messages=messages, sampling=sampling, **more)


def completion(*prompts: str, sampling: Sampling = GREEDY, **more: Any) -> CompletionPayload:
    return CompletionPayload(prompts=prompts, sampling=sampling, **more)


def spec(task: Task) -> ModelSpec:
    return ModelSpec(
        id="tiny-lm", task=task, backend="torch", source=str(TINY_LM), device="cpu", options={"max_requests": 8}
    )


class TestChat(EngineConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls) -> BackendCase:
        return BackendCase(
            backend=TorchBackend(),
            spec=spec("chat"),
            requests=(
                request("greedy", chat("And the king said")),
                request("long", chat("In the beginning " * 30, "and then"), 40),
                request("seeded", chat("Blessed are", sampling=SEEDED)),
                request("thrice", chat("And he", sampling=SEEDED, n=3), 9),
                request("stopped", chat("The LORD", sampling=Sampling(temperature=0, stop=("the", ",")))),
                request("unicode", chat("naïve 😀 \ufffd مرحبا", sampling=SEEDED)),
                request("blank", chat("")),
            ),
            bad=(
                BadRequest(request=request("empty", ChatPayload(messages=())), path="messages"),
                BadRequest(
                    request=request("cold", chat("a", sampling=Sampling(temperature=-1))), path="temperature"
                ),
                BadRequest(request=request("typo", chat("a"), tokens=4), path="options.tokens"),
                BadRequest(request=request("tools", chat("a", tools=(Tool(name="f"),))), path="tools"),
                BadRequest(request=request("surrogate", chat("a", "\ud800 lone")), path="messages[1].content"),
                BadRequest(request=request("long!", chat("word " * 600)), path="messages"),
                BadRequest(
                    request=request(
                        "image",
                        ChatPayload(messages=(Message(role="user", content=(ImagePart(url="https://x"),)),)),
                    ),
                    path="messages[0].content[0]",
                ),
                BadRequest(request=request("task", EmbedPayload(inputs=("a",))), path="task"),
            ),
        )


class TestCompletion(EngineConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls) -> BackendCase:
        return BackendCase(
            backend=TorchBackend(),
            spec=spec("completion"),
            requests=(
                request("one", completion("And the king said")),
                request("many", completion("In the", "", "And God said, Let", n=2, sampling=SEEDED)),
                request("echo", completion("Now it came to pass", echo=True)),
            ),
            bad=(
                BadRequest(request=request("none", completion()), path="prompt"),
                BadRequest(request=request("lone", completion("a", "\udfff")), path="prompt[1]"),
            ),
        )

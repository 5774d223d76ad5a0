import struct

import msgspec
import pytest
from headgate_echo.backend import EchoBackend
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    EmbedPayload,
    ImagePart,
    InferenceRequest,
    InferPayload,
    Message,
    ModelSpec,
    Payload,
    Sampling,
    Task,
    Tensor,
    TextPart,
)
from headgate_plugin_api.conformance import BackendCase, BadRequest, BatchConformance, StepConformance


def request(
    request_id: str, payload: Payload, max_output: int | None = None, **options: object
) -> InferenceRequest:
    return InferenceRequest(id=request_id, model="echo", payload=payload, max_output=max_output, options=options)


def chat(*texts: str, n: int = 1, role: str = "user") -> ChatPayload:
    messages = tuple(Message(role=role, content=text) for text in texts)  # type: ignore[arg-type]
    return ChatPayload(messages=messages, n=n)


def stopped(payload: ChatPayload, *stops: str) -> ChatPayload:
    return msgspec.structs.replace(payload, sampling=Sampling(stop=stops))


def picture() -> ChatPayload:
    parts = (TextPart("what is this?"), ImagePart("data:image/png;base64,AA=="))
    return ChatPayload(messages=(Message(role="user", content=parts),))


JSON = {"type": "json_object"}


def spec(task: Task, **options: object) -> ModelSpec:
    return ModelSpec(id="echo", task=task, backend="echo", options=options)


class TestChat(StepConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls) -> BackendCase:
        return BackendCase(
            backend=EchoBackend(),
            spec=spec("chat", delay_ms=1),
            requests=(
                request("short", chat("hello there"), 16),
                request("long", chat("first", "one two three"), 700, tokens=600, delay_ms=0),
                request("cut", chat("one two three four five"), 2),
                request("thrice", chat("one two", n=3), 5),
                request("empty", chat("   "), 16),
                request("none", chat("one two"), 16, tokens=0),
                request("stopped", stopped(chat("one two three"), "thr"), 16),
                request("endless", chat("one two"), 900, tokens=10**12, delay_ms=0),
            ),
            bad=(
                BadRequest(request=request("nobody", chat("hi", role="system")), path="messages"),
                BadRequest(request=request("minus", chat("hi"), tokens=-1), path="options.tokens"),
                BadRequest(request=request("typo", chat("hi"), token=1), path="options"),
                BadRequest(request=request("slow", chat("hi"), delay_ms=1e9), path="options.delay_ms"),
                BadRequest(request=request("many", chat("hi", n=129)), path="n"),
                BadRequest(request=request("mute", stopped(chat("hi"), "")), path="stop"),
                BadRequest(request=request("seen", picture()), path="messages[0].content[1]"),
                BadRequest(
                    request=request("tools", msgspec.structs.replace(chat("hi"), tool_choice="required")),
                    path="tool_choice",
                ),
                BadRequest(
                    request=request("form", msgspec.structs.replace(chat("hi"), response_format=JSON)),
                    path="response_format.type",
                ),
                BadRequest(request=request("task", EmbedPayload(inputs=("hi",)))),
            ),
            exact_bound=True,
        )


class TestCompletion(StepConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls) -> BackendCase:
        return BackendCase(
            backend=EchoBackend(),
            spec=spec("completion", tokens=4),
            requests=(
                request("one", CompletionPayload(prompts=("hello there",)), 16),
                request("two", CompletionPayload(prompts=("hello there", "a b c d e f"), n=2), 16),
                request("echo", CompletionPayload(prompts=("hello  there",), echo=True), 2),
            ),
            exact_bound=True,
        )


class TestEmbed(BatchConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls) -> BackendCase:
        return BackendCase(
            backend=EchoBackend(),
            spec=spec("embed", dimensions=8),
            requests=(
                request("one", EmbedPayload(inputs=("hello there",))),
                request("many", EmbedPayload(inputs=("hello there", "again", "\ud800 lone"))),
            ),
            bad=(
                BadRequest(request=request("ids", EmbedPayload(inputs=("a", (1, 2)))), path="input[1]"),
                BadRequest(request=request("blank", EmbedPayload(inputs=("a", " "))), path="input[1]"),
                BadRequest(request=request("dims", EmbedPayload(inputs=("a",), dimensions=9)), path="dimensions"),
            ),
            exact_bound=True,
        )


class TestInfer(BatchConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls) -> BackendCase:
        def tensor(*numbers: float, name: str = "x") -> Tensor:
            data = struct.pack(f"<{len(numbers)}f", *numbers)
            return Tensor(name=name, datatype="FP32", shape=(len(numbers),), data=data)

        named = (tensor(1.0), tensor(2.0, name="y"), tensor(3.0, name="z"))

        return BackendCase(
            backend=EchoBackend(),
            spec=spec("infer"),
            requests=(
                request("one", InferPayload(inputs=(tensor(1.0),))),
                request("two", InferPayload(inputs=(tensor(1.0, -2.5), tensor(3.0)))),
                request("some", InferPayload(inputs=named, outputs=("z", "x"))),
            ),
            bad=(
                BadRequest(
                    request=request("odd", InferPayload(inputs=named, outputs=("x", "a"))), path="outputs[1].name"
                ),
            ),
            exact_bound=True,
        )

"""The remote suite on the backend for OpenAI-compatible servers."""

import json
from typing import Any

import pytest
from headgate_plugin_api import (
    ChatPayload,
    EmbedPayload,
    InferenceRequest,
    Message,
    RemoteModel,
    TargetSpec,
    Task,
    Usage,
)
from headgate_plugin_api.conformance import RemoteCase, RemoteConformance, Reply, Sent
from headgate_remote.openai import OpenAIBackend
from msgspec import structs

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def spec(task: Task) -> TargetSpec:
    return TargetSpec(
        model="m",
        task=task,
        backend="openai",
        upstream_model="up",
        base_url="https://provider.example/v1",
        api_key="sk-very-secret",
    )


def chat_provider(sent: Sent) -> Reply:
    asked = json.loads(sent.body)
    base = {"id": "c1", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "hello wörld"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Reply(
            body=json.dumps({**base, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
        )
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": " wörld"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": USAGE},
    ]
    lines = [json.dumps({**base, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
    body = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])
    return Reply(headers={"content-type": "text/event-stream"}, body=body.encode())


def embed_provider(sent: Sent) -> Reply:
    data = [
        {"object": "embedding", "index": index, "embedding": [0.6, 0.8]}
        for index, _ in enumerate(json.loads(sent.body)["input"])
    ]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return Reply(body=json.dumps({"object": "list", "model": "up", "data": data, "usage": usage}).encode())


def chat(request_id: str, *, stream: bool) -> InferenceRequest:
    payload = ChatPayload(messages=(Message(role="user", content="say hello"),))
    return InferenceRequest(id=request_id, model="m", payload=payload, max_output=16, stream=stream)


class TestChat(RemoteConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def remote_case(cls) -> RemoteCase:
        return RemoteCase(
            backend=OpenAIBackend(),
            spec=spec("chat"),
            requests=(chat("whole", stream=False), chat("stream", stream=True)),
            provider=chat_provider,
        )


class TestEmbed(RemoteConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def remote_case(cls) -> RemoteCase:
        request = InferenceRequest(id="e", model="m", payload=EmbedPayload(inputs=("one", "two")))
        return RemoteCase(
            backend=OpenAIBackend(), spec=spec("embed"), requests=(request,), provider=embed_provider
        )


class Leaky:
    """An upstream whose responses are never let go."""

    def __init__(self, upstream: Any) -> None:
        self._upstream = upstream

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        response = await self._upstream.send(*args, **kwargs)
        return Kept(response)


class Kept:
    def __init__(self, response: Any) -> None:
        self.status, self.headers = response.status, response.headers
        self.read, self.chunks = response.read, response.chunks

    async def close(self) -> None: ...


class LeakyBackend(OpenAIBackend):
    def connect(self, spec: TargetSpec, upstream: Any) -> RemoteModel:
        return super().connect(spec, Leaky(upstream))


class CheapBackend(OpenAIBackend):
    def bound(self, request: InferenceRequest, spec: TargetSpec) -> Usage | None:
        return Usage(input=6, output=2)


class TalkativeBackend(OpenAIBackend):
    def connect(self, spec: TargetSpec, upstream: Any) -> RemoteModel:
        return super().connect(structs.replace(spec, model=f"{spec.model} with {spec.api_key}"), upstream)


@pytest.mark.parametrize(
    ("backend", "check", "arguments"),
    [
        (LeakyBackend(), RemoteConformance.test_leaving_early_drops_the_call, ()),
        (LeakyBackend(), RemoteConformance.test_every_answer_is_complete_however_it_is_cut, ()),
        (CheapBackend(), RemoteConformance.test_the_bound_is_never_too_low, ()),
        (
            TalkativeBackend(),
            RemoteConformance.test_a_refusal_is_an_error_of_the_api_and_keeps_the_secret,
            (500,),
        ),
    ],
)
def test_the_suite_finds(backend: OpenAIBackend, check: Any, arguments: tuple[int, ...]) -> None:
    requests = (chat("whole", stream=False), chat("stream", stream=True))
    case = RemoteCase(backend=backend, spec=spec("chat"), requests=requests, provider=chat_provider)
    with pytest.raises(AssertionError):
        check(RemoteConformance(), case, *arguments)

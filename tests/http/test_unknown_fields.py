"""Fields that a local model does not know: refused by name where they ask for something, and else no matter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import httpx2 as httpx
import pytest

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "words", "prompt": "hi"},
    "/v1/embeddings": {"model": "vectors", "input": "hi"},
    "/v1/responses": {"model": "echo", "input": "hi"},
    "/v2/models/tensors/infer": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]},
}


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "logprobs", True),
        ("/v1/chat/completions", "logit_bias", {"50256": -100}),
        ("/v1/chat/completions", "modalities", ["text", "audio"]),
        ("/v1/chat/completions", "functions", [{"name": "f"}]),
        ("/v1/chat/completions", "web_search_options", {"search_context_size": "low"}),
        ("/v1/chat/completions", "min_p", 0.1),
        ("/v1/chat/completions", "max_token", 5),
        ("/v1/completions", "logprobs", 0),
        ("/v1/completions", "suffix", "end"),
        ("/v1/embeddings", "task", "retrieval"),
        ("/v1/responses", "top_logprobs", 3),
        ("/v1/chat/completions", "modalities", ["audio"]),
        ("/v1/chat/completions", "function_call", {"name": "f"}),
        ("/v1/chat/completions", "top_logprobs", 1),
        ("/v1/responses", "include", ["message.output_text.logprobs"]),
        ("/v1/responses", "include", 1),
        ("/v1/responses", "truncation", {"type": "auto"}),
        ("/v2/models/tensors/infer", "output", [{"name": "x"}]),
    ],
)
def test_what_a_local_model_would_ignore_is_refused_by_name(
    client: httpx.Client, path: str, field: str, value: Any
) -> None:
    answer = client.post(path, json={**BODIES[path], field: value})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["path"]) == (400, "invalid_request", field), problem
    assert field in problem["detail"]


@pytest.mark.parametrize("form", [{"type": "json_object"}, {"schema": {}}])
def test_what_an_engine_refuses_names_the_field_in_words_as_well(client: httpx.Client, form: Any) -> None:
    asked = {**BODIES["/v1/chat/completions"], "response_format": form}
    problem = client.post("/v1/chat/completions", json=asked).json()
    assert problem["path"] == "response_format.type"
    assert problem["error"]["message"] == "response_format.type: only {'type': 'text'} is supported"


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {"user": "u", "store": False, "reasoning_effort": "low", "seed": 1}),
        ("/v1/chat/completions", {"logprobs": False, "logit_bias": {}, "functions": None, "modalities": []}),
        ("/v1/chat/completions", {"response_format": {}}),
        ("/v1/chat/completions", {"modalities": ["text"], "top_logprobs": 0, "function_call": "none"}),
        ("/v1/chat/completions", {"function_call": "auto", "prompt_cache_options": {"ttl": "30m"}}),
        ("/v1/responses", {"top_logprobs": 0, "prompt_cache_options": {"ttl": "30m"}}),
        ("/v1/completions", {"suffix": None, "logprobs": None, "user": "u", "suffix_": ""}),
        ("/v1/embeddings", {"user": "u"}),
        ("/v1/responses", {"store": False, "include": ["reasoning.encrypted_content"], "truncation": "auto"}),
        ("/v2/models/tensors/infer", {"id": "7", "parameters": {"priority": 1}, "outputs": None, "more": None}),
    ],
)
def test_what_asks_for_nothing_is_no_matter(client: httpx.Client, path: str, more: dict[str, Any]) -> None:
    answer = client.post(path, json={**BODIES[path], **more})
    assert answer.status_code == 200, answer.text


class Provider(BaseHTTPRequestHandler):
    """One that knows every field, and repeats what it was told."""

    asked: ClassVar[list[dict[str, Any]]] = []
    fails = False

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(told)
        message = {"role": "assistant", "content": "far"}
        document = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        said = json.dumps(document).encode()
        self.send_response(500 if self.fails else 200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def mixed(run_gateway: Any) -> Iterator[Any]:
    """A provider's model that falls back to a local one."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        far = {"backend": "openai", "model": "m", "base_url": f"http://127.0.0.1:{server.server_port}/v1"}
        near = {"backend": "echo", "model": "echo", "priority": 1}
        models = [
            {"id": "echo", "task": "chat", "backend": "echo"},
            {"id": "mixed", "task": "chat", "targets": [far, near]},
        ]
        with run_gateway({"models": models}) as started:
            yield started
        server.shutdown()
        thread.join()


def test_only_a_provider_is_asked_for_what_local_models_do_not_know(
    mixed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"model": "mixed", "messages": [{"role": "user", "content": "near"}]}
    biased = {**plain, "logit_bias": {"1": 2}}
    with mixed.client(mixed.key()) as client:
        answer = client.post("/v1/chat/completions", json=biased)
        assert answer.json()["choices"][0]["message"]["content"] == "far", answer.text
        assert Provider.asked[-1]["logit_bias"] == {"1": 2}
        monkeypatch.setattr(Provider, "fails", True)
        answer = client.post("/v1/chat/completions", json=plain)
        assert answer.json()["choices"][0]["message"]["content"] == "near", answer.text
        answer = client.post("/v1/chat/completions", json=biased)
        assert (answer.status_code, answer.json()["code"]) == (502, "upstream_error"), "no other text instead"

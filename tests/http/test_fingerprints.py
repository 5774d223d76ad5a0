"""Every embedding answer says what made it, wherever it was made; targets that stand in for each other agree."""

from __future__ import annotations

from typing import Any


def test_every_embedding_says_what_made_it(gateway: Any, key: str, run_gateway: Any) -> None:
    away = {"backend": "openai", "model": "vectors", "base_url": f"{gateway.url}/v1", "api_key": key}
    gone = {**away, "base_url": "http://127.0.0.1:1/v1"}
    here = {"backend": "echo", "model": "local", "priority": 1, "fingerprint": "shared"}
    models = [
        {"id": "local", "task": "embed", "backend": "echo"},
        {"id": "remote", "task": "embed", "targets": [away]},
        {"id": "told", "task": "embed", "targets": [{**away, "fingerprint": "shared"}]},
        {"id": "fallen", "task": "embed", "targets": [{**gone, "fingerprint": "shared"}, here]},
    ]
    with run_gateway({"models": models}) as started, started.client(started.key()) as client:

        def made_by(model: str, **more: Any) -> str:
            body = {"model": model, "input": "a b", **more}
            answer = client.post("/v1/embeddings", json=body, headers={"idempotency-key": f"{body}"})
            again = client.post("/v1/embeddings", json=body, headers={"idempotency-key": f"{body}"})
            assert answer.status_code == again.status_code == 200, answer.text
            assert "idempotency-replayed" in again.headers
            name: str = answer.headers["headgate-fingerprint"]
            assert again.headers["headgate-fingerprint"] == name
            return name

        assert made_by("local") == "echo-64"
        assert made_by("remote") == "vectors of openai"
        assert made_by("remote", dimensions=64) == "vectors of openai:64"
        assert made_by("told") == made_by("fallen") == "shared"
        assert made_by("told", dimensions=64) == made_by("fallen", dimensions=64) == "shared:64"

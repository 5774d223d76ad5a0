"""What this version does not serve says so, wherever a client of another server might look for it."""

from __future__ import annotations

import httpx2 as httpx
import pytest
from headgate_gateway.http import absent


@pytest.mark.parametrize(
    ("method", "address"),
    [
        *(("POST", f"{start}x" if start.endswith("/") else start) for start in absent._ABSENT),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1beta/models/echo:generateContent"),
        ("GET", "/v2/models/org/words/stats"),
        ("GET", "/v2/models/tensors/versions/3/config"),
        ("GET", "/v2/models/stats"),
        ("GET", "/v2/models/tensors/trace/setting"),
        ("POST", "/v2/models/tensors/trace/setting"),
        ("POST", "/v2/models/tensors/generate_stream"),
    ],
)
def test_a_known_address_without_an_answer(client: httpx.Client, method: str, address: str) -> None:
    answer = client.request(method, address, json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.json()["detail"].startswith("not supported by this version: ")
    assert answer.headers["x-should-retry"] == "false"


def test_an_address_that_nobody_knows(client: httpx.Client) -> None:
    assert client.get("/v1/nothing").json()["detail"] == "there is nothing at this address"


def test_binary_tensors_are_refused_as_such(client: httpx.Client) -> None:
    head = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}'
    answer = client.post(
        "/v2/models/tensors/infer",
        content=head + b"\0\0\0\0",
        headers={"inference-header-content-length": str(len(head))},
    )
    assert (answer.status_code, answer.json()["path"]) == (400, "inference-header-content-length")
    assert "binary tensors" in answer.json()["error"]

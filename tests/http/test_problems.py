"""Rows of the error table, each by a real cause: status, code, path, headers, both forms of the body."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any

import httpx2 as httpx
import pytest

from tests.processes import ADMIN_KEY

CHAT = "/v1/chat/completions"
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


def check(answer: httpx.Response, status: int, code: str, path: str | None = None) -> dict[str, Any]:
    """The shape of every error, and this one's facts."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["headgate-version"]
    if answer.request.url.path.startswith(("/v1", "/v2/models")):
        assert answer.headers["headgate-cost"] == "0", "an error instead of an answer is not charged"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["type"] == f"urn:headgate:problem:{code}"
    assert document["title"]
    assert document["instance"] == answer.headers["x-request-id"]
    assert document.get("path") == path
    if isinstance(document["error"], dict):
        assert document["error"]["code"] == code
        assert document["error"]["param"] == path
        assert document["error"]["message"] == document["detail"]
    else:
        assert document["error"] == document["detail"]
    return document


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("", None),
        ("not json", None),
        ("[]", None),
        ('{"model": "echo", "messages": [{"role": "user", "content": NaN}]}', None),
        ('{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
        ("[" * 100_000, None),
        ("[" * 65 + "]" * 65, None),
        ('{"model": "echo", "x": ' + "[" * 300 + "]" * 300 + "}", None),
        ('{"model": "echo"}', "messages"),
        ('{"model": "echo", "options": {"tokens": [18446744073709551616]}}', "options.tokens[0]"),
        ('{"model": "echo", "messages": []}', "messages"),
        ('{"model": "echo", "messages": [{"role": "user", "content": 5}]}', "messages[0].content"),
        ('{"model": 1, "messages": [{"role": "user", "content": "a"}]}', "model"),
        ('{"model": "echo", "messages": [{"role": "user", "content": "a"}], "max_tokens": -1}', "max_tokens"),
        ('{"model": "echo", "messages": [{"role": "user", "content": "a"}], "n": 1e99}', "n"),
    ],
)
def test_bad_bodies_are_400(client: httpx.Client, body: str, path: str | None) -> None:
    check(client.post(CHAT, content=body), 400, "invalid_request", path)


def test_malformed_json_says_where(client: httpx.Client) -> None:
    document = check(client.post(CHAT, content='{"model": x}'), 400, "invalid_request")
    assert "byte 10" in document["detail"]


def test_invalid_utf8_is_400(client: httpx.Client) -> None:
    check(client.post(CHAT, content=b'{"model": "\xff\xfe"}'), 400, "invalid_request")


def test_a_large_body_is_413(client: httpx.Client) -> None:
    check(client.post(CHAT, content=b"x" * (1024 * 1024 + 1)), 413, "invalid_request")

    def trickle() -> Any:
        for _ in range(20):
            yield b" " * 65_536

    check(client.post(CHAT, content=trickle()), 413, "invalid_request")
    assert client.post(CHAT, json=HELLO).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Basic aGk6aGk="},
        {"x-api-key": "hg_nobody"},
        {"api-key": "x" * 10_000},
        {"x-goog-api-key": "hg_000000000000000000000000000000_000000"},
        {"authorization": "Bearer h\xfcg"},
    ],
)
def test_bad_credentials_are_401(gateway: Any, headers: dict[str, str]) -> None:
    with gateway.client() as stranger:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = stranger.post(CHAT, json=HELLO, headers=raw)
        check(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key", "x-goog-api-key"])
def test_every_place_of_a_key_works(gateway: Any, key: str, name: str) -> None:
    value = f"bearer {key}" if name == "authorization" else key
    with gateway.client() as stranger:
        assert stranger.get("/v1/models", headers={name: value}).status_code == 200


def test_a_revoked_key_is_401(gateway: Any) -> None:
    made = gateway.admin("POST", "keys", json={"project": "tests"})
    with gateway.client(made["key"]) as client:
        assert client.post(CHAT, json=HELLO).status_code == 200
        gateway.admin("DELETE", f"keys/{made['id']}")
        check(client.post(CHAT, json=HELLO), 401, "invalid_api_key")


def test_rights_are_403(gateway: Any) -> None:
    with gateway.client(gateway.key(models=["vectors"])) as client:
        answer = client.post(CHAT, json=HELLO)
        check(answer, 403, "permission_denied")
        assert answer.headers["x-should-retry"] == "false"
        check(client.get("/v1/models/echo"), 403, "permission_denied")
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["vectors"]
        check(client.get("/admin/v1/keys"), 403, "permission_denied")
        check(client.get("/metrics"), 403, "permission_denied")
    with gateway.client(gateway.key(scopes=["usage"])) as client:
        check(client.post(CHAT, json=HELLO), 403, "permission_denied")


def test_a_key_is_made_for_ids_because_an_alias_would_allow_nothing(gateway: Any) -> None:
    with gateway.client("admin-key-of-the-tests") as client:
        refused = client.post("/admin/v1/keys", json={"project": "tests", "models": ["words"]})
        document = check(refused, 400, "invalid_request", "models")
        assert "another name of 'org/words'" in document["detail"]
    with gateway.client(gateway.key(models=["org/words"])) as client:
        for name in ("org/words", "words"):
            assert client.post("/v1/completions", json={"model": name, "prompt": "a"}).status_code == 200


def test_unknown_models_and_addresses_are_404(client: httpx.Client) -> None:
    answer = client.post(CHAT, json={**HELLO, "model": "nobody"})
    check(answer, 404, "model_not_found", "model")
    assert answer.headers["x-should-retry"] == "false"
    check(client.get("/v1/models/nobody"), 404, "model_not_found")
    check(client.get("/v1/nothing"), 404, "not_found")
    check(client.post("/v2/models/tensors/nothing", json={}), 404, "not_found")


@pytest.mark.parametrize("path", ["/", "/v1", "/chat/completions", "/v1/v1/chat/completions", "/models"])
def test_a_base_address_that_is_not_quite_right_is_told_the_right_one(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    check(answer, 404, "not_found")
    assert "/v1" in answer.json()["detail"]


def test_a_wrong_method_is_405(client: httpx.Client) -> None:
    answer = client.get(CHAT)
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST, OPTIONS"
    assert answer.json()["detail"] == "this address does not know the method; expected POST"
    check(client.get("/v2/models/tensors/infer"), 405, "method_not_allowed")


def test_an_empty_body_is_called_empty(client: httpx.Client) -> None:
    for body in (b"", b" \n"):
        answer = client.post(CHAT, content=body)
        check(answer, 400, "invalid_request")
        assert answer.json()["detail"] == "the body is empty, expected a JSON object"


def test_an_empty_document_of_an_operator_names_what_is_missing(gateway: Any) -> None:
    with gateway.client(ADMIN_KEY) as operator:
        check(operator.post("/admin/v1/keys"), 400, "invalid_request", "project")


@pytest.mark.parametrize(
    ("address", "allow"),
    [
        ("/admin/v1/keys", "GET, HEAD, POST, OPTIONS"),
        ("/admin/v1/keys/", "GET, HEAD, POST, OPTIONS"),
        ("/admin/v1/keys/key_1", "DELETE, OPTIONS"),
        ("/admin/v1/keys/key_1/rotate", "POST, OPTIONS"),
        ("/v1/models/org/model", "GET, HEAD, OPTIONS"),
        ("/v1/embeddings", "POST, OPTIONS"),
    ],
)
def test_an_address_names_all_of_its_methods_and_no_others(
    client: httpx.Client, address: str, allow: str
) -> None:
    options, wrong = client.options(address), client.put(address)
    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", allow)
    check(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == allow
    assert client.options("/v1/nothing").status_code == 404


@pytest.mark.parametrize("address", ["/v2/models/tensors", "/v2/models/tensors/versions/3"])
def test_metadata_is_a_get(client: httpx.Client, address: str) -> None:
    answer = client.post(address, json={})
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_a_packed_body_is_refused_as_such(client: httpx.Client) -> None:
    packed = gzip.compress(json.dumps(HELLO).encode())
    refused = client.post(CHAT, content=packed, headers={"content-encoding": "gzip"})
    check(refused, 400, "invalid_request", "content-encoding")
    plain = client.post(CHAT, json=HELLO, headers={"content-encoding": "identity"})
    assert plain.status_code == 200


def test_a_wrong_task_is_400(client: httpx.Client) -> None:
    check(client.post(CHAT, json={**HELLO, "model": "vectors"}), 400, "invalid_request", "model")


def test_budgets_are_402_with_their_numbers(gateway: Any) -> None:
    with gateway.client(gateway.key(budget="0.00001/month")) as client:
        body = {**HELLO, "max_tokens": 100, "messages": [{"role": "user", "content": "a b c d e"}]}
        document = check(client.post(CHAT, json=body), 402, "request_exceeds_budget")
        assert document["limit"] == "0.00001"
        assert document["spent"] == "0"
        assert document["held"] == "0"
        assert document["scope"].startswith("key")
        assert document["resets_at"].endswith("Z")
        fits = document["largest_max_tokens"]
        assert client.post(CHAT, json={**body, "max_tokens": fits}).status_code == 200
        left = client.post(CHAT, json={**body, "max_tokens": 1})
        check(left, 402, left.json()["code"])
        assert left.json()["code"] in {"budget_exhausted", "request_exceeds_budget"}
        assert left.headers["x-should-retry"] == "false"


def test_headers_that_are_too_large_are_431(gateway: Any, client: httpx.Client) -> None:
    check(client.get("/v1/models", headers={"x-junk": "j" * 33_000}), 431, "invalid_request")
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-endless: ")
        answer = b""
        try:
            for _ in range(64):
                raw.sendall(b"j" * 4096)
        except OSError:
            pass
        try:
            answer = raw.recv(65536)
        except ConnectionResetError:
            pytest.skip("the kernel reset the connection before its answer was read")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "invalid_request"


def test_what_is_no_http_is_told_so(gateway: Any) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = raw.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    document = json.loads(body)
    assert document["code"] == "invalid_request"
    assert document["instance"].startswith("req_")
    assert f"x-request-id: {document['instance']}".encode() in head


def test_v2_errors_are_texts(client: httpx.Client) -> None:
    body = {"inputs": [{"name": "x", "datatype": "INT32", "shape": [2], "data": [1, "a"]}]}
    document = check(
        client.post("/v2/models/tensors/infer", json=body), 400, "invalid_request", "inputs[0].data[1]"
    )
    assert isinstance(document["error"], str)
    assert isinstance(check(client.get("/v2/models/nobody"), 404, "model_not_found")["error"], str)
    assert isinstance(
        check(client.post("/v2/models/tensors/versions/2/infer", json=body), 404, "model_not_found")["error"], str
    )


def test_token_ids_name_the_setting_of_langchain(client: httpx.Client) -> None:
    document = check(
        client.post("/v1/embeddings", json={"model": "vectors", "input": [[1, 2]]}),
        400,
        "invalid_request",
        "input",
    )
    assert "check_embedding_ctx_length" in document["detail"]


def test_admin_documents_are_strict(gateway: Any) -> None:
    with gateway.client("admin-key-of-the-tests") as client:
        document = check(
            client.post("/admin/v1/keys", json={"project": "a", "buget": "1/month"}),
            400,
            "invalid_request",
            "buget",
        )
        assert "budget" in document["detail"]
        check(
            client.post("/admin/v1/keys", json={"project": "a", "budget": "lots"}),
            400,
            "invalid_request",
            "budget",
        )
        check(client.get("/admin/v1/keys?limit=0"), 400, "invalid_request", "limit")
        check(client.get("/admin/v1/keys?colour=red"), 400, "invalid_request", "colour")
        for name in ("keys", "accounts", "prices", "credits"):
            for cursor in ("zzz", "7", "key_%00", "%C3%A9" * 40):
                check(client.get(f"/admin/v1/{name}?after={cursor}"), 400, "invalid_request", "after")
        check(client.delete("/admin/v1/keys/key_nobody"), 404, "not_found", "id")


def test_the_admin_key_runs_no_models(gateway: Any) -> None:
    with gateway.client("admin-key-of-the-tests") as operator:
        answer = operator.post(CHAT, json={"model": "echo", "messages": [{"role": "user", "content": "x"}]})
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    assert answer.headers["x-should-retry"] == "false"
    assert "keys create" in answer.json()["detail"]


def test_a_reached_rate_says_which_and_when(gateway: Any) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    with gateway.client(gateway.key(rpm=1)) as client:
        assert client.post(CHAT, json=body).status_code == 200
        answer = client.post(CHAT, json=body)
    assert answer.status_code == 429
    assert answer.headers["ratelimit-policy"] == '"requests-key";q=1;w=60'
    assert answer.headers["ratelimit"] == f'"requests-key";r=0;t={answer.headers["retry-after"]}'
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_request_that_no_minute_can_hold_is_not_tried_again(gateway: Any) -> None:
    with gateway.client(gateway.key(tpm=10)) as client:
        body = {"model": "echo", "messages": [{"role": "user", "content": "word " * 20}]}
        answer = client.post(CHAT, json=body)
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limit_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers

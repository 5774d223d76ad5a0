"""Streams that end otherwise than planned: clients that leave or do not read, engines and servers that end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest
from headgate_gateway.settings import Settings

CHAT = "/v1/chat/completions"

Send = Callable[..., socket.socket]


def body(words: int, delay_ms: int, **more: Any) -> dict[str, Any]:
    """A request whose answer takes `words` times `delay_ms`."""
    return {
        "model": "echo",
        "messages": [{"role": "user", "content": "word"}],
        "max_tokens": words,
        "options": {"tokens": words, "delay_ms": delay_ms},
        **more,
    }


def spent(gateway: Any, key_id: str) -> tuple[str, str]:
    """What a key's budget has spent and holds."""
    keys = gateway.admin("GET", "keys?limit=1000")["data"]
    account = next(key for key in keys if key["id"] == key_id)["account"]
    return account["budgets"][0]["spent"], account["budgets"][0]["held"]


def budgeted(gateway: Any) -> tuple[str, str]:
    """A key with room, and its id."""
    made = gateway.admin("POST", "keys", json={"project": "tests", "budget": "1/total"})
    return made["key"], made["id"]


@pytest.fixture
def send() -> Iterator[Callable[..., socket.socket]]:
    """`send(gateway, key, document, *headers)`: a request on a socket that only the test reads and closes."""
    with contextlib.ExitStack() as stack:

        def open_and_send(gateway: Any, key: str, document: dict[str, Any], *headers: str) -> socket.socket:
            host, port = gateway.url.removeprefix("http://").split(":")
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            content = json.dumps(document).encode()
            lines = [f"POST {CHAT} HTTP/1.1", "host: x", f"x-api-key: {key}", f"content-length: {len(content)}"]
            connection.sendall("\r\n".join([*lines, *headers, "", ""]).encode() + content)
            return connection

        yield open_and_send


def read_until(connection: socket.socket, what: bytes) -> bytes:
    data = b""
    while what not in data:
        chunk = connection.recv(65536)
        assert chunk, data
        data += chunk
    return data


def test_a_client_that_leaves_mid_stream_pays_for_what_it_got(send: Send, gateway: Any, wait_for: Any) -> None:
    key, key_id = budgeted(gateway)
    connection = send(gateway, key, body(2000, 5, stream=True))
    read_until(connection, b'"content":" word"')
    connection.close()
    cost, _ = wait_for(
        lambda: (found := spent(gateway, key_id))[1] == "0" and found, "the hold ends soon after its client"
    )
    assert 0 < float(cost) < 0.000002 * 2000, "the delivered part, which is not all of it"


@pytest.mark.parametrize("padding", [0, 100_000], ids=["small", "so large that reading pauses"])
def test_a_client_that_leaves_before_a_whole_answer_pays_nothing(
    send: Send, gateway: Any, wait_for: Any, padding: int
) -> None:
    key, key_id = budgeted(gateway)
    connection = send(gateway, key, body(2000, 5, user="x" * padding))
    wait_for(lambda: spent(gateway, key_id)[1] != "0", "the hold stands")
    connection.close()
    wait_for(lambda: spent(gateway, key_id)[1] == "0", "the hold ends soon after its client")
    assert spent(gateway, key_id)[0] == "0"


def test_a_client_that_leaves_has_left_all_that_it_asked(send: Send, gateway: Any, wait_for: Any) -> None:
    """What is asked behind a running request must not hide from it that their client has gone."""
    key, key_id = budgeted(gateway)
    connection = send(gateway, key, body(2000, 5))
    wait_for(lambda: spent(gateway, key_id)[1] != "0", "the hold stands")
    connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
    connection.close()
    wait_for(lambda: spent(gateway, key_id)[1] == "0", "the hold ends soon after its client", 5)
    assert spent(gateway, key_id)[0] == "0"


def test_a_client_that_closes_its_sending_side_has_left(send: Send, gateway: Any, wait_for: Any) -> None:
    """It looks the same as one that is gone, as it does to uvicorn and nginx: nobody runs on for nobody."""
    key, key_id = budgeted(gateway)
    connection = send(gateway, key, body(2000, 5))
    wait_for(lambda: spent(gateway, key_id)[1] != "0", "the hold stands")
    connection.shutdown(socket.SHUT_WR)
    wait_for(lambda: spent(gateway, key_id)[1] == "0", "the hold ends at once", 5)
    assert connection.recv(1) == b""


def test_a_client_that_does_not_read_holds_up_its_own_stream_only(
    send: Send, gateway: Any, wait_for: Any, key: str
) -> None:
    slow_key, slow_id = budgeted(gateway)
    connection = send(
        gateway, slow_key, body(200_000, 0, stream=True, messages=[{"role": "user", "content": "w" * 200}])
    )
    read_until(connection, b"wwww")
    with gateway.client(key) as other:
        assert other.post(CHAT, json=body(3, 0)).status_code == 200
    assert spent(gateway, slow_id)[1] != "0", "it waits"
    connection.close()
    wait_for(lambda: spent(gateway, slow_id)[1] == "0", "the hold ends when the client goes")


def test_a_replay_of_a_whole_answer_is_the_same_and_free(gateway: Any) -> None:
    key, key_id = budgeted(gateway)
    with gateway.client(
        key,
    ) as client:
        headers = {"idempotency-key": "once"}
        first = client.post(CHAT, json=body(3, 0), headers=headers)
        before = spent(gateway, key_id)
        again = client.post(CHAT, json=body(3, 0), headers=headers)
        assert again.status_code == 200, again.text
        assert again.json() == first.json()
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        assert again.headers["headgate-cost"] == first.headers["headgate-cost"]
        assert again.headers["x-request-id"] == first.headers["x-request-id"]
        assert spent(gateway, key_id) == before
        other = client.post(CHAT, json=body(4, 0), headers=headers)
        assert other.status_code == 422
        assert other.json()["code"] == "idempotency_mismatch"
        assert other.headers["x-should-retry"] == "false"


def test_a_replay_of_a_stream_says_the_same(gateway: Any, key: str) -> None:
    headers = {"idempotency-key": "stream-once"}
    with gateway.client(key) as client:
        first = client.post(CHAT, json=body(5, 0, stream=True), headers=headers)
        again = client.post(CHAT, json=body(5, 0, stream=True), headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert text_of(again) == text_of(first) == "word word word word word"
    assert chunks_of(again)[-1] == chunks_of(first)[-1]


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def text_of(answer: httpx.Response) -> str:
    deltas = [choice["delta"] for chunk in chunks_of(answer) for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_a_key_in_flight_is_409(send: Send, gateway: Any, key: str) -> None:
    connection = send(gateway, key, body(300, 10, stream=True), "idempotency-key: busy")
    read_until(connection, b'"content"')
    with gateway.client(key) as client:
        answer = client.post(CHAT, json=body(300, 10, stream=True), headers={"idempotency-key": "busy"})
        assert answer.status_code == 409, answer.text
        assert answer.json()["code"] == "idempotency_in_progress"
        assert int(answer.headers["retry-after"]) >= 1
    connection.close()


@pytest.fixture
def own(run_gateway: Any) -> Any:
    """A gateway that a test may harm."""
    with run_gateway(
        {
            "models": [{"id": "echo", "task": "chat", "backend": "echo", "price": {"output": "2"}}],
            "server": {"drain_s": 0.5},
        }
    ) as gateway:
        yield gateway


def test_sigterm_lets_short_answers_finish_and_cuts_long_ones_with_an_error(
    send: Send, own: Any, wait_for: Any
) -> None:
    key, key_id = budgeted(own)
    short, long = (
        send(own, key, body(20, 10, stream=True)),
        send(own, key, body(5000, 10, stream=True)),
    )
    read_until(short, b'"content"')
    read_until(long, b'"content"')
    ended: list[int] = []
    stopping = threading.Thread(target=lambda: ended.append(own.stop("worker-0")))
    stopping.start()
    assert b"[DONE]" in read_until(short, b"\r\n0\r\n\r\n")
    cut = read_until(long, b"\r\n0\r\n\r\n")
    stopping.join()
    assert ended == [0], own.log("worker-0")
    error = json.loads(cut.partition(b"event: error\ndata: ")[2].partition(b"\n\n")[0])
    assert error["error"]["code"] == error["code"] == "overloaded"
    assert b"[DONE]" not in cut
    own.start_worker(0)
    cost, held = spent(own, key_id)
    assert held == "0"
    assert float(cost) > 20 * 0.000002


def test_an_engine_killed_mid_stream_gives_an_error_and_costs_nothing(
    send: Send, own: Any, wait_for: Any
) -> None:
    key, key_id = budgeted(own)
    connection = send(own, key, body(5000, 5, stream=True))
    read_until(connection, b'"content"')
    own.stop("engine-echo", signal.SIGKILL)
    rest = read_until(connection, b"\r\n0\r\n\r\n")
    error = json.loads(rest.partition(b"event: error\ndata: ")[2].partition(b"\n\n")[0])
    assert error["error"]["code"] == "upstream_error"
    wait_for(lambda: spent(own, key_id) == ("0", "0"), "waived and released")
    with own.client(key) as client:
        answer = client.post(CHAT, json=body(3, 0))
        assert answer.status_code == 503
        assert answer.json()["code"] == "model_loading"
        assert int(answer.headers["retry-after"]) >= 1
        settings: Settings = own.settings
        own.start_engine(settings.models[0])
        wait_for(lambda: client.post(CHAT, json=body(3, 0)).status_code == 200, "the new engine answers")


def test_without_a_ledger_requests_get_503_and_then_work_again(own: Any, wait_for: Any) -> None:
    key, _ = budgeted(own)
    with own.client(key) as client:
        assert client.post(CHAT, json=body(3, 0)).status_code == 200
        own.stop("ledger", signal.SIGKILL)
        wait_for(lambda: client.get("/health/ready").status_code == 503, "the worker notices")
        answer = client.post(CHAT, json=body(3, 0))
        assert answer.status_code == 503
        assert answer.json()["code"] == "ledger_unavailable"
        assert client.get("/health/live").status_code == 200
        own.start_ledger()
        wait_for(lambda: client.post(CHAT, json=body(3, 0)).status_code == 200, "the new ledger admits")

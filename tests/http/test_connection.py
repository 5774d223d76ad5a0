"""One client's connection, byte by byte: what stands around a request must not change its answer."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
from random import Random
from typing import Any

import pytest
import uvicorn
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.http.bodies import read_body
from headgate_gateway.http.connection import BoundedConnection, Cycle
from headgate_gateway.http.cors import Cors
from headgate_gateway.http.departure import Departure
from headgate_gateway.http.edge import Edge
from headgate_gateway.http.sending import send_bytes
from headgate_gateway.telemetry.metrics import Metrics
from uvicorn.server import ServerState

CHAT = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}).encode()


def request(key: str, *lines: str, body: bytes = CHAT, length: int = len(CHAT)) -> bytes:
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: x",
        f"authorization: Bearer {key}",
        *lines,
        f"content-length: {length}",
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def talk(gateway: Any, data: bytes, *, answers: int = 0) -> list[str]:
    """The start lines of what is answered, until so many have come or the gateway closes; then `closed`."""
    host, port = gateway.url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(data)
        said = b""
        while not answers or len(re.findall(rb"\r\n\r\n[{]", said)) < answers:
            if not (piece := raw.recv(65_536)):
                break
            said += piece
    lines = re.findall(r"HTTP/1.1 \d+", said.decode())
    return lines if answers else [*lines, "closed"]


OK = "HTTP/1.1 200"


@pytest.mark.parametrize("more", [b"garbage\r\n\r\n", b"POST / HTTP/1.1\r\nx: \0\r\n\r\n"])
@pytest.mark.parametrize("before", [1, 2])
def test_what_follows_a_request_does_not_take_its_answers_place(
    gateway: Any, key: str, more: bytes, before: int
) -> None:
    assert talk(gateway, request(key) * before + more) == [*[OK] * before, "closed"]


def test_garbage_in_a_body_is_refused(gateway: Any, key: str) -> None:
    chunked = request(key).replace(b"content-length: %d" % len(CHAT), b"transfer-encoding: chunked")
    assert talk(gateway, chunked) == ["HTTP/1.1 400", "closed"]


@pytest.mark.parametrize(
    "offer",
    [
        ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"),
        ("connection: upgrade", "upgrade: websocket"),
    ],
)
def test_an_offer_of_another_protocol_is_ignored(gateway: Any, key: str, offer: tuple[str, ...]) -> None:
    assert talk(gateway, request(key, *offer) * 2 + request(key), answers=3) == [OK, OK, OK]


def test_a_tunnel_is_refused(gateway: Any) -> None:
    assert talk(gateway, b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n") == ["HTTP/1.1 400", "closed"]


def test_who_was_not_told_to_send_the_body_is_not_read_on(gateway: Any) -> None:
    asked = request("none", "expect: 100-continue", body=b"")
    assert talk(gateway, asked) == ["HTTP/1.1 401", "closed"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_of_http_1_0_is_sent_no_chunks(gateway: Any, key: str, stream: bool) -> None:
    body = CHAT[:-1] + b', "stream": true}' if stream else CHAT
    asked = request(key, body=body, length=len(body)).replace(b"HTTP/1.1", b"HTTP/1.0")
    host, port = gateway.url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(asked)
        head, _, answer = b"".join(iter(lambda: raw.recv(65_536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(OK.encode())
    assert b"transfer-encoding" not in head
    if stream:
        assert answer.startswith(b"data: ")
        assert answer.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(answer)["choices"][0]["message"]["content"] == "hi"


def test_who_sends_the_body_unasked_keeps_its_connection(gateway: Any, key: str) -> None:
    data = request(key, "expect: 100-continue")
    assert talk(gateway, data + request(key), answers=2) == [OK, OK]


@pytest.fixture
def uncollected() -> Any:
    """No garbage collection meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_a_request_leaves_nothing_to_the_garbage_collector(uncollected: None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with Departure(scope):
            body = await read_body(scope, receive, max_bytes=100)
        await send_bytes(send, 200, body, [])

    edge = Edge(app, ids=IdSource(SystemClock(), Random(1)), metrics=Metrics([]), cors=Cors(()))
    config = uvicorn.Config(edge, log_config=None, lifespan="off")
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedConnection(config, ServerState(), app_state={}), "127.0.0.1", 0
    )
    async with server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(20):
            writer.write(request("none", body=b"whole", length=5))
            await reader.readuntil(b"whole")
        alive = [one for one in gc.get_objects() if type(one) is Cycle]
        writer.close()
        await writer.wait_closed()
    assert len(alive) == 1, "the connection keeps its last one"

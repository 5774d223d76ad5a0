"""Requests whose framing two readers could take for different things: refused, and the connection closed."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

LIVE = b"GET /health/live HTTP/1.1\r\n"
ASK = b"POST /v1/quotes HTTP/1.1\r\nhost: x\r\n"
CHUNKED = ASK + b"transfer-encoding: chunked\r\n\r\n"


def answer(gateway: Any, data: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of all that is answered until the gateway closes."""
    host, port = gateway.url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(data)
        head, _, body = b"".join(iter(lambda: raw.recv(65_536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


REFUSED = {
    "no host": LIVE + b"\r\n",
    "two hosts": LIVE + b"host: x\r\nhost: x\r\n\r\n",
    "two hosts of an old client": b"GET /health/live HTTP/1.0\r\nhost: x\r\nhost: y\r\n\r\n",
    "a host that is none": LIVE + b"host: x/y@z\r\n\r\n",
    "no host with an offer of another protocol": LIVE + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "length and chunks": ASK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": ASK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": ASK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a list of lengths": ASK + b"content-length: 2, 2\r\n\r\n{}",
    "a signed length": ASK + b"content-length: +2\r\n\r\n{}",
    "no length": ASK + b"content-length:\r\n\r\n{}",
    "a length beyond counting": ASK + b"content-length: 99999999999999999999\r\n\r\n{}",
    "a coding that is not read": ASK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": ASK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are not last": ASK + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunks of an old client": CHUNKED.replace(b"1.1", b"1.0") + b"2\r\n{}\r\n0\r\n\r\n",
    "a folded line": LIVE + b"host: x\r\nx: a\r\n b\r\n\r\n",
    "a space before the colon": LIVE + b"host : x\r\n\r\n",
    "bare line feeds": b"GET /health/live HTTP/1.1\nhost: x\n\n",
    "one bare line feed": LIVE + b"host: x\nx: y\r\n\r\n",
    "a bare carriage return": LIVE + b"host: x\rx: y\r\n\r\n",
    "a chunk size in C": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk size below nothing": CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    "a chunk size beyond counting": CHUNKED + b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"1\r\n{}\r\n0\r\n\r\n",
    "a chunk that ends with a bare line feed": CHUNKED + b"2\r\n{}\n0\r\n\r\n",
    "a line feed in a chunk's extension": CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "no version": b"GET /health/live\r\n\r\n",
    "a version that is not spoken": b"GET /health/live HTTP/2.0\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(gateway: Any, data: bytes) -> None:
    status, head, body = answer(gateway, data)
    problem = json.loads(body)
    assert (status, problem["status"], problem["code"]) == (400, 400, "invalid_request")
    assert b"\r\nconnection: close\r\n" in head + b"\r\n"
    assert b"content-type: application/problem+json" in head


@pytest.mark.parametrize(("data", "named"), [(REFUSED["no host"], "host"), (REFUSED["two lengths"], "Length")])
def test_a_refusal_says_what_is_wrong(gateway: Any, data: bytes, named: str) -> None:
    assert named in json.loads(answer(gateway, data)[2])["detail"]


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health/live HTTP/1.0\r\n\r\n",
        LIVE + b"host:\r\nconnection: close\r\n\r\n",
        LIVE + b"host: [::1]:8080\r\nconnection: close\r\n\r\n",
        b"GET http://y/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ],
    ids=["an old client has no host", "an empty host", "an address of IPv6", "a proxy's form of the address"],
)
def test_what_the_standard_allows_is_answered(gateway: Any, data: bytes) -> None:
    assert answer(gateway, data)[0] == 200

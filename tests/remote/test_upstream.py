"""The HTTP client against real sockets that misbehave in every way a provider can."""

from __future__ import annotations

import asyncio
import socket

import pytest
from headgate_plugin_api import UpstreamFailed, UpstreamTimeout

OK = b"HTTP/1.1 200 OK\r\n"


async def ask(upstream, url, *, timeout_s=30.0, body=b"{}", headers=None):
    return await upstream.send("POST", url, headers=headers or {}, body=body, timeout_s=timeout_s)


async def test_an_answer_is_read(provider, upstream):
    provider.says(OK + b"Content-Length: 5\r\nX-Thing: A\r\n\r\nhello")
    response = await ask(upstream, provider.url + "/x", headers={"authorization": "Bearer k"})
    assert response.status == 200
    assert response.headers["x-thing"] == "A"
    assert await response.read(100) == b"hello"
    assert provider.seen[0].headers["authorization"] == "Bearer k"
    assert provider.seen[0].line == "POST /v1/x HTTP/1.1"


async def test_a_body_over_the_limit_is_refused_and_dropped(provider, upstream):
    provider.says(OK + b"content-length: 1000000\r\n\r\n", b"x" * 1000, close=False)
    response = await ask(upstream, provider.url)
    with pytest.raises(UpstreamFailed, match="longer than 100 bytes"):
        await response.read(100)
    await asyncio.wait_for(provider.gone.wait(), 5)


async def test_nobody_listens(upstream):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(UpstreamFailed) as caught:
            await ask(upstream, url)
    assert "secret" not in f"{caught.value} {caught.value.inner}"
    assert caught.value.retryable


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"\0\1\2 no http at all\r\n\r\n",),
        (b"HTTP/1.1 20",),
        (b"HTTP/1.1 200 OK\r\nbad header line without colon\r\n\r\n",),
    ],
    ids=["closed", "garbage", "half a status line", "broken header"],
)
async def test_no_answer_is_a_failure(provider, upstream, pieces):
    provider.says(*pieces)
    with pytest.raises(UpstreamFailed):
        await ask(upstream, provider.url)


async def test_endless_headers_are_refused(provider, upstream):
    async def answer(writer):
        writer.write(OK)
        while True:
            writer.write(b"x-filler: " + b"a" * 8000 + b"\r\n")
            await writer.drain()

    provider.answer = answer
    with pytest.raises(UpstreamFailed):
        await ask(upstream, provider.url)


async def test_a_shorter_body_than_announced_is_a_failure(provider, upstream):
    provider.says(OK + b"content-length: 100\r\n\r\nshort")
    response = await ask(upstream, provider.url)
    with pytest.raises(UpstreamFailed):
        await response.read(1000)


async def test_a_broken_chunk_is_a_failure(provider, upstream):
    provider.says(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
    response = await ask(upstream, provider.url)
    with pytest.raises(UpstreamFailed):
        await response.read(1000)


async def test_a_reset_in_the_body_is_a_failure(provider, upstream):
    async def answer(writer):
        writer.write(OK + b"content-length: 100\r\n\r\npart")
        await writer.drain()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    provider.answer = answer
    response = await ask(upstream, provider.url)
    with pytest.raises(UpstreamFailed):
        await response.read(1000)


async def test_silence_before_the_headers_times_out(provider, upstream):
    provider.says(close=False)
    with pytest.raises(UpstreamTimeout):
        await ask(upstream, provider.url, timeout_s=0.2)
    await asyncio.wait_for(provider.gone.wait(), 5)


async def test_a_trickle_cannot_outlive_the_timeout(provider, upstream):
    async def answer(writer):
        writer.write(OK + b"content-length: 100000\r\n\r\nit begins")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    provider.answer = answer
    response = await ask(upstream, provider.url, timeout_s=0.3)
    with pytest.raises(UpstreamTimeout):
        await response.read(100_000)
    await asyncio.wait_for(provider.gone.wait(), 5)


async def test_redirects_are_not_followed(provider, upstream):
    provider.says(b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
    response = await ask(upstream, provider.url)
    assert response.status == 307
    await response.close()
    assert len(provider.seen) == 1


async def test_closing_early_is_seen_by_the_provider(provider, upstream):
    provider.says(OK + b"\r\n", b"first", close=False)
    response = await ask(upstream, provider.url)
    chunks = response.chunks()
    assert await anext(chunks) == b"first"
    await response.close()
    await response.close()
    await asyncio.wait_for(provider.gone.wait(), 5)
    await chunks.aclose()


async def test_cancelling_a_read_is_seen_by_the_provider(provider, upstream):
    provider.says(OK + b"\r\n", b"first", close=False)
    response = await ask(upstream, provider.url)
    started = asyncio.Event()

    async def read():
        started.set()
        await response.read(1000)

    reading = asyncio.create_task(read())
    await started.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.wait_for(provider.gone.wait(), 5)


async def test_cancelled_before_the_headers_the_connection_closes_at_once(provider, upstream):
    provider.says(close=False)
    asking = asyncio.create_task(ask(upstream, provider.url))
    while not provider.seen:
        await asyncio.sleep(0.005)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(provider.gone.wait(), 5)


async def test_a_header_that_cannot_be_sent_names_no_value(provider, upstream):
    with pytest.raises(UpstreamFailed) as caught:
        await ask(upstream, provider.url, headers={"authorization": "Bearer se\ncret"})
    assert "cret" not in str(caught.value)
    assert not caught.value.retryable


async def test_connections_are_reused(upstream):
    connections = 0

    async def serve(reader, writer):
        nonlocal connections
        connections += 1
        try:
            while True:
                await reader.readuntil(b"{}")
                writer.write(OK + b"content-length: 2\r\n\r\nok")
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for _ in range(3):
        response = await ask(upstream, f"http://127.0.0.1:{port}/")
        assert await response.read(10) == b"ok"
    assert connections == 1
    await upstream.close()
    server.close()

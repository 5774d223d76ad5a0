"""Our own client over a connection that is cut again and again, each time coming back to the other worker."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import pytest
from headgate import AsyncHeadgate, Headgate, errors

WORDS = 400


class CuttingProxy:
    """Relays TCP connections to the workers in turn, and cuts each after so many bytes of the answers.

    Attributes:
        cuts: For each connection, after how many bytes; those beyond are left alone.
        connections: How many there were.
    """

    def __init__(self, urls: list[str], cuts: list[int]) -> None:
        self.cuts = cuts
        self.connections = 0
        self.workers: list[int] = []
        self._urls = urls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        left = self.cuts[number] if number < len(self.cuts) else 2**62
        host, port = self._urls[number % len(self._urls)].removeprefix("http://").split(":")
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        there = asyncio.create_task(self._pipe(reader, upstream_writer, 2**62))
        back = asyncio.create_task(self._pipe(upstream_reader, writer, left))
        for task in (there, back):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, upstream_writer):
            end.transport.abort()
        there.cancel()
        back.cancel()

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, left: int) -> None:
        try:
            while left and (data := await source.read(min(left, 65536))):
                left -= len(data)
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return


@pytest.fixture
async def proxied(deployment: Any) -> AsyncIterator[Callable[..., Any]]:
    """`await proxied(cuts)`: a cutting proxy and its address."""
    proxies: list[CuttingProxy] = []

    async def start(cuts: list[int], urls: list[str] | None = None) -> tuple[CuttingProxy, str]:
        proxy = CuttingProxy(urls or deployment.urls, cuts)
        proxies.append(proxy)
        return proxy, await proxy.start()

    yield start
    for proxy in proxies:
        await proxy.close()


def request(words: int = WORDS, delay_ms: int = 1) -> dict[str, Any]:
    return {
        "model": "echo",
        "messages": [{"role": "user", "content": " ".join(f"w{n}" for n in range(words))}],
        "options": {"delay_ms": delay_ms},
        "resumable": 20,
    }


def said(words: int = WORDS) -> str:
    return " ".join(f"w{n}" for n in range(words))


async def told(client: AsyncHeadgate, **more: Any) -> tuple[str, Any, Any]:
    """The text, the stream and its folded answer."""
    async with client.chat.completions.stream(**more) as stream:
        final = await stream.final()
    return stream.text_so_far, stream, final


def the_bill(deployment: Any, request_id: str) -> dict[str, Any]:
    records = [record for record in deployment.records() if record["request_id"] == request_id]
    assert len(records) == 1
    found: dict[str, Any] = records[0]
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_any_cuts_give_the_same_answer_and_one_bill(deployment: Any, proxied: Any, seed: int) -> None:
    draw = random.Random(seed)
    # A word takes some 250 bytes on the wire, headers some 700: cuts in headers, in chunk sizes, anywhere.
    cuts = [draw.choice([draw.randrange(60, 1200), draw.randrange(700, 30_000)]) for _ in range(6)]
    proxy, url = await proxied(cuts)
    async with AsyncHeadgate(api_key=deployment.key(), base_url=url, max_retries=12) as client:
        with client.meter() as meter:
            text, stream, final = await told(client, **request())
    assert text == final.text == said()
    assert final.choices[0].finish_reason == "stop"
    assert proxy.connections == 7
    record = the_bill(deployment, stream.request_id)
    assert record["outcome"] == "ok"
    assert Decimal(record["cost"]) == Decimal(str(stream.cost)) == Decimal(str(meter.cost)) == Decimal("0.0012")


async def test_the_synchronous_client_too(deployment: Any, proxied: Any) -> None:
    proxy, url = await proxied([3000, 5000, 9000])

    def tell(key: str) -> tuple[str, Any]:
        client = Headgate(api_key=key, base_url=url, max_retries=8)
        with client, client.chat.completions.stream(**request()) as stream:
            return "".join(stream.text), stream

    text, stream = await asyncio.to_thread(tell, deployment.key())
    assert text == said()
    assert proxy.connections == 4
    assert the_bill(deployment, stream.request_id)["cost"] == str(stream.cost) == "0.0012"


async def test_many_at_once(deployment: Any, proxied: Any) -> None:
    draw = random.Random(5)
    proxy, url = await proxied([draw.randrange(100, 20_000) for _ in range(60)])
    async with AsyncHeadgate(api_key=deployment.key(), base_url=url, max_retries=20) as client:
        answers = await asyncio.gather(*(told(client, **request(150)) for _ in range(20)))
    assert {text for text, _, _ in answers} == {said(150)}
    assert proxy.connections >= 60
    assert {the_bill(deployment, stream.request_id)["cost"] for _, stream, _ in answers} == {"0.00045"}


async def test_the_owner_is_killed(deploy: Any, proxied: Any) -> None:
    async with deploy() as deployment:
        key = deployment.key()
        _, url = await proxied([], deployment.urls)
        async with AsyncHeadgate(api_key=key, base_url=url, max_retries=8) as client:
            stream = await client.chat.completions.create(stream=True, **request(2000, 5))
            async for _ in stream:
                if len(stream.text_so_far) > 200:
                    break
            await asyncio.to_thread(deployment.gateway.stop, "worker-0", signal.SIGKILL)
            with pytest.raises(errors.StreamLost) as lost:
                await stream.final()
        record = the_bill(deployment, str(lost.value.record))
        assert record["outcome"] == "gateway_crash"
        assert str(lost.value.cost) == record["cost"]
        assert said(2000).startswith(lost.value.partial.rstrip())
        assert len(lost.value.partial.split()) - 1 <= record["usage"]["output"] <= len(lost.value.partial.split())

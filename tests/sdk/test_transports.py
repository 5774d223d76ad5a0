"""Each transport over real sockets: what arrives, what each clock and each broken connection becomes."""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import importlib.util
import json
import pickle
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import headgate._transport.by_httpx
import headgate._transport.pool
import httpx2
import pytest
from headgate import AsyncHeadgate, Headgate, errors
from headgate._transport.types import AsyncTransport, Transport
from headgate.types import Limits, Timeout, Wiring

from tests.certificates import make_certificate

from .conftest import HELLO, Colour, Driver

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

COMPLETION = json.dumps(
    {"id": "x", "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hey"}}]}
).encode()
CHUNK = b'data: {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": "w "}}]}\n\n'
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Peer:
    """A server of raw bytes on a thread of its own."""

    def __init__(self, handler: Handler, **options: Any) -> None:
        self.heads: list[bytes] = []
        self.connections = self.open_now = 0
        self.gone = threading.Event()
        self._handler = handler
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._run(self._start(options))

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self, options: dict[str, Any]) -> asyncio.Server:
        path = options.pop("path", None)
        if path is not None:
            return await asyncio.start_unix_server(self._serve, path)
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, **options)

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open_now += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                size = next(
                    (
                        int(line[15:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                await reader.readexactly(size)
                await self._handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            self.open_now -= 1
            self.gone.set()
            self._tasks.discard(task)
            writer.close()

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

        self._run(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    started: list[Peer] = []

    def start(handler: Handler, **options: Any) -> Peer:
        started.append(Peer(handler, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


def with_httpx2() -> Any:
    """The default transport's module, on httpx's successor."""
    spec = importlib.util.spec_from_file_location("by_httpx2", headgate._transport.by_httpx.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept = sys.modules["httpx"]
    sys.modules["httpx"] = httpx2
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["httpx"] = kept
    return module


Connect = Callable[..., Any]


@pytest.fixture(params=["httpx", "httpx2", "fast"])
def connect(request: pytest.FixtureRequest, colour: Colour) -> Connect:
    """Makes a client on one of the transports."""
    kind: Any = Headgate if colour == "sync" else AsyncHeadgate

    def make(url: str, **options: Any) -> Any:
        transport: str | Transport | AsyncTransport = request.param
        if request.param == "httpx2":
            module = with_httpx2()
            wiring = options.pop("wiring", Wiring())
            cls = module.HttpxTransport if colour == "sync" else module.AsyncHttpxTransport
            transport = cls(url, wiring)
        return kind(api_key="hg_x", base_url=url, transport=transport, **{"max_retries": 0, **options})

    make.name = request.param  # type: ignore[attr-defined]
    return make


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Request-ID: req_1\r\ncontent-length: %d\r\n\r\n" % len(COMPLETION))
    writer.write(COMPLETION)
    await writer.drain()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Chunks until the client has gone."""
    writer.write(SSE)
    left = asyncio.create_task(reader.read())
    while not left.done():
        writer.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
        await writer.drain()
        await asyncio.wait([left], timeout=0.01)


async def one_chunk_then_silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE + b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
    await reader.read()


async def one_chunk_then_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE + b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
    raise ConnectionError


async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
    raise ConnectionError


async def ask(drive: Driver, client: Any, **options: Any) -> Any:
    return await drive.do(client.chat.completions.create, model="m", messages=HELLO, **options)


async def test_calls_share_a_connection(drive: Driver, connect: Connect, peer: Any) -> None:
    server = peer(answer)
    async with drive.within(connect(server.url)) as client:
        for _ in range(3):
            reply = await ask(drive, client)
            assert reply.text == "hey"
            assert reply.request_id == "req_1"
            assert reply.raw.headers.get("x-request-id") == "req_1"
    assert server.connections == 1
    head = server.heads[0].lower()
    assert b"authorization: bearer hg_x" in head
    assert b"idempotency-key: " in head
    assert b"user-agent: headgate-python/" in head


async def test_bodies_are_decompressed(drive: Driver, connect: Connect, peer: Any) -> None:
    body = gzip.compress(COMPLETION)

    async def compressed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )

    async with drive.within(connect(peer(compressed).url)) as client:
        assert (await ask(drive, client)).text == "hey"


async def test_leaving_a_stream_early_is_seen_at_once(drive: Driver, connect: Connect, peer: Any) -> None:
    server = peer(drip)
    async with drive.within(connect(server.url)) as client:
        async with drive.within(client.chat.completions.stream(model="m", messages=HELLO)) as stream:
            async for piece in drive.each(stream.text):
                assert piece == "w "
                # The first piece is here although the body goes on for ever.
                break
        assert await asyncio.to_thread(server.gone.wait, 10)


async def test_nobody_listens(drive: Driver, connect: Connect) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        async with drive.within(connect(url)) as client:
            with pytest.raises(errors.ConnectionFailed) as caught:
                await ask(drive, client)
            with pytest.raises(errors.ConnectionFailed):
                await ask(drive, client, stream=True)
    assert caught.value.phase == "connect"
    assert caught.value.failure is errors.Failure.NEVER_DELIVERED


async def test_a_connection_that_takes_too_long(drive: Driver, connect: Connect) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # A full backlog: whoever comes next waits for a handshake that does not come.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        timeout = Timeout(connect=0.2)
        async with drive.within(
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=timeout)
        ) as client:
            with pytest.raises(errors.TimedOut) as caught:
                await ask(drive, client)
        for filler in fillers:
            filler.close()
    assert caught.value.clock == "connect"
    assert caught.value.failure is errors.Failure.NEVER_DELIVERED


async def test_no_first_byte(drive: Driver, connect: Connect, peer: Any) -> None:
    timeout = Timeout(first_byte=0.1, idle=0.1)
    async with drive.within(connect(peer(silence).url, timeout=timeout)) as client:
        for stream in (False, True):
            with pytest.raises(errors.TimedOut) as caught:
                await ask(drive, client, stream=stream)
            assert caught.value.clock == "first_byte"
            assert caught.value.seconds == 0.1


async def test_silence_in_the_middle(drive: Driver, connect: Connect, peer: Any) -> None:
    timeout = Timeout(first_byte=0.2, idle=0.2)
    async with drive.within(connect(peer(one_chunk_then_silence).url, timeout=timeout)) as client:
        stream = await ask(drive, client, stream=True)
        with pytest.raises(errors.StreamInterrupted) as caught:
            await drive.list(stream)
    assert caught.value.partial == "w "
    cause = caught.value.__cause__
    assert isinstance(cause, errors.TimedOut)
    assert cause.clock == "idle"


async def test_a_cut_in_the_middle(drive: Driver, connect: Connect, peer: Any) -> None:
    async with drive.within(connect(peer(one_chunk_then_end).url)) as client:
        stream = await ask(drive, client, stream=True)
        with pytest.raises(errors.StreamInterrupted) as caught:
            await drive.list(stream)
    assert caught.value.partial == "w "
    assert isinstance(caught.value.__cause__, errors.ConnectionFailed)


async def test_half_an_answer(drive: Driver, connect: Connect, peer: Any) -> None:
    async with drive.within(connect(peer(half).url)) as client:
        with pytest.raises(errors.ConnectionFailed) as caught:
            await ask(drive, client)
    assert caught.value.failure is errors.Failure.OUTCOME_UNKNOWN


async def test_the_deadline_ends_a_stream_that_never_rests(drive: Driver, connect: Connect, peer: Any) -> None:
    server = peer(drip)
    async with drive.within(connect(server.url)) as client:
        stream = await ask(drive, client, stream=True, deadline=0.3)
        with pytest.raises(errors.StreamInterrupted) as caught:
            await drive.list(stream)
        assert await asyncio.to_thread(server.gone.wait, 10)
    cause = caught.value.__cause__
    assert isinstance(cause, errors.TimedOut)
    assert cause.clock == "deadline"


async def test_the_deadline_ends_a_whole_answer(drive: Driver, connect: Connect, peer: Any) -> None:
    async with drive.within(connect(peer(silence).url)) as client:
        with pytest.raises(errors.TimedOut) as caught:
            await ask(drive, client, deadline=0.2)
    assert caught.value.clock == "deadline"


async def test_an_exhausted_pool_is_named(drive: Driver, connect: Connect, peer: Any) -> None:
    wiring = Wiring(limits=Limits(connections=1, pool_wait_s=0.1))
    async with drive.within(connect(peer(drip).url, wiring=wiring)) as client:
        async with drive.within(client.chat.completions.stream(model="m", messages=HELLO)):
            with pytest.raises(errors.TimedOut, match=r"all 1 of the pool \(limits.connections\)") as caught:
                await ask(drive, client)
        assert caught.value.clock == "pool"
        assert caught.value.failure is errors.Failure.NEVER_DELIVERED


@pytest.mark.parametrize("colour", ["sync"], indirect=True)
@pytest.mark.filterwarnings("ignore:a stream was neither closed:ResourceWarning")
async def test_a_stream_that_is_dropped_gives_its_room_back(drive: Driver, connect: Connect, peer: Any) -> None:
    wiring = Wiring(limits=Limits(connections=1, pool_wait_s=5))
    with connect(peer(drip).url, wiring=wiring) as client:
        for _ in range(3):
            for _chunk in client.chat.completions.create(model="m", messages=HELLO, stream=True):
                break


async def flood(drive: Driver, client: Any) -> None:
    """Two hundred calls, many at once."""

    def in_threads() -> None:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: client.chat.completions.create(model="m", messages=HELLO), range(200)))

    if drive.colour == "sync":
        await asyncio.to_thread(in_threads)
    else:
        await asyncio.gather(*(ask(drive, client) for _ in range(200)))


@pytest.mark.parametrize("connect", ["httpx"], indirect=True)
async def test_many_at_once_share_their_connections(drive: Driver, connect: Connect, peer: Any) -> None:
    server = peer(answer)
    limits = Limits(connections=5, pool_wait_s=30)
    async with drive.within(connect(server.url, wiring=Wiring(limits=limits))) as client:
        await flood(drive, client)
    assert 2 <= server.connections <= 5


async def test_who_waits_for_a_connection_costs_one_look(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    free = headgate._transport.pool._free

    def counted(*given: Any) -> Any:
        nonlocal looks
        looks += 1
        return free(*given)

    monkeypatch.setattr(headgate._transport.pool, "_free", counted)
    limits = Wiring(limits=Limits(connections=3, keepalive=1))
    server = peer(answer)
    async with AsyncHeadgate(api_key="x", base_url=server.url, transport="httpx", wiring=limits) as client:
        await asyncio.gather(
            *(client.chat.completions.create(model="m", messages=HELLO) for _ in range(100))  # type: ignore[arg-type]
        )
    assert looks <= 400
    assert server.connections == 3


def test_one_client_for_several_event_loops(connect: Connect, peer: Any) -> None:
    server = peer(answer)
    client = connect(server.url)
    if isinstance(client, Headgate):
        client.close()
        return

    async def call() -> str:
        return str((await client.chat.completions.create(model="m", messages=HELLO)).text)

    with warnings.catch_warnings():
        # What the first loop left open can only be dropped: there is nobody to close it any more.
        warnings.simplefilter("ignore", ResourceWarning)
        assert [asyncio.run(call()) for _ in range(2)] == ["hey", "hey"]
        asyncio.run(client.close())
        gc.collect()


async def test_a_closed_client_stays_closed(drive: Driver, connect: Connect, peer: Any) -> None:
    client = connect(peer(answer).url, max_retries=2)
    await ask(drive, client)
    await drive.do(client.close)
    for stream in (False, True):
        with pytest.raises(errors.ConnectionFailed, match="the client is closed") as caught:
            await ask(drive, client, stream=stream)
        assert len(caught.value.attempts) == 1


async def test_answers_and_errors_can_be_copied(drive: Driver, connect: Connect, peer: Any) -> None:
    async with drive.within(connect(peer(answer).url)) as client:
        whole = await ask(drive, client)
        assert pickle.loads(pickle.dumps(whole)).model_dump() == whole.model_dump()
        assert copy.deepcopy(whole).raw.headers == dict(whole.raw.headers)


@pytest.mark.parametrize("connect", ["httpx"], indirect=True)
async def test_what_is_idle_beyond_the_limit_is_closed(drive: Driver, connect: Connect, peer: Any) -> None:
    server = peer(answer)
    limits = Limits(connections=10, keepalive=2, pool_wait_s=30)
    async with drive.within(connect(server.url, wiring=Wiring(limits=limits))) as client:
        await flood(drive, client)
        async with asyncio.timeout(20):
            while server.open_now > 2:
                await asyncio.sleep(0.01)
        before = server.connections
        await ask(drive, client)
        assert server.connections == before


async def test_an_idle_connection_that_expired_is_not_used(drive: Driver, connect: Connect, peer: Any) -> None:
    server = peer(answer)
    wiring = Wiring(limits=Limits(connections=1, keepalive_s=0.01))
    async with drive.within(connect(server.url, wiring=wiring)) as client:
        for _ in range(3):
            await ask(drive, client)
            await asyncio.sleep(0.1)
    assert server.connections == 3


async def test_errors_have_their_body(drive: Driver, connect: Connect, peer: Any) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"code": "budget_exhausted", "detail": "spent", "scope": "key"}'
        writer.write(b"HTTP/1.1 402 Payment Required\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async with drive.within(connect(peer(refuse).url)) as client:
        for stream in (False, True):
            with pytest.raises(errors.QuotaExceeded) as caught:
                await ask(drive, client, stream=stream)
            assert caught.value.scope == "key"


async def test_redirects_are_not_followed(drive: Driver, connect: Connect, peer: Any) -> None:
    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")

    async with drive.within(connect(peer(elsewhere).url)) as client:
        with pytest.raises(errors.StatusError) as caught:
            await ask(drive, client)
    assert caught.value.status == 307


async def test_a_proxy_is_asked(drive: Driver, connect: Connect, peer: Any) -> None:
    proxy = peer(answer)
    async with drive.within(connect("http://gateway.invalid", wiring=Wiring(proxy=proxy.url))) as client:
        assert (await ask(drive, client)).text == "hey"
    assert proxy.heads[0].startswith(b"POST http://gateway.invalid/v1/chat/completions")


async def test_a_proxy_of_the_environment(
    drive: Driver, connect: Connect, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = peer(answer), peer(answer)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with drive.within(connect(server.url)) as client:
        await ask(drive, client)
    async with drive.within(connect("http://gateway.invalid")) as client:
        await ask(drive, client)
    assert len(server.heads) == len(proxy.heads) == 1


def test_http2_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.ConfigurationError, match=r"httpx\[http2\]"):
        Headgate(api_key="x", transport="httpx", wiring=Wiring(http2=True))


async def test_a_unix_socket(drive: Driver, connect: Connect, peer: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    peer(answer, path=path)
    if connect.name == "fast":  # type: ignore[attr-defined]
        with pytest.raises(errors.ConfigurationError, match="httpx"):
            connect("http://gateway", wiring=Wiring(uds=path))
        return
    async with drive.within(connect("http://gateway", wiring=Wiring(uds=path))) as client:
        assert (await ask(drive, client)).text == "hey"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def test_certificates(drive: Driver, connect: Connect, peer: Any, certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = peer(answer, ssl=context)
    url = f"https://localhost:{server.port}"
    async with drive.within(connect(url, wiring=Wiring(ca=cert))) as client:
        assert (await ask(drive, client)).text == "hey"
    async with drive.within(connect(url, wiring=Wiring(verify=False))) as client:
        assert (await ask(drive, client)).text == "hey"
    async with drive.within(connect(url)) as client:
        with pytest.raises(errors.ConnectionFailed, match=r"(?i)certificate"):
            await ask(drive, client)

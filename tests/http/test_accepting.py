"""Who takes a connection: workers that share a socket have equal parts, and nobody waits for one that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvicorn
import uvloop
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.http import accepting, connection
from headgate_gateway.http.accepting import BURST, PATIENCE_S, SLACK, Acceptor, Shares
from headgate_gateway.http.connection import MOST_WAITING, BoundedConnection, Gathered
from headgate_gateway.settings import MOST_WORKERS
from uvicorn.server import ServerState

from tests.certificates import make_certificate

NOBODY = 65_534
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def sleeper() -> Any:
    """A process of somebody else, that lives."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def shares(path: Path, worker: int, held: int, pid: int | None = None) -> Shares:
    made = Shares(path, worker)
    for _ in range(held):
        made.opened()
    if pid is not None:
        made._table[2 * worker] = pid
    return made


def test_who_holds_more_than_the_mean_and_two_lets_others_go_first(tmp_path: Path, sleeper: Any) -> None:
    one = shares(tmp_path / "held", 0, 4)
    two = shares(tmp_path / "held", 1, 0, sleeper.pid)
    assert not one.above()  # the mean is 2
    one.opened()
    assert one.above()
    assert not two.above()
    two.opened()
    assert not one.above()
    one.opened()
    one.opened()
    assert one.above()
    one.closed()
    one.closed()
    assert not one.above()
    assert (one.held, two.held) == (5, 1)


def test_who_is_dead_or_leaves_is_not_waited_for(tmp_path: Path, sleeper: Any) -> None:
    one = shares(tmp_path / "held", 0, 50)
    assert not one.above()  # alone
    two = shares(tmp_path / "held", 1, 0, sleeper.pid)
    assert one.above()
    two.leave()
    assert not one.above()
    two = shares(tmp_path / "held", 1, 0, sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not one.above()
    assert shares(tmp_path / "held", 0, 0).held == 0  # who comes anew holds none


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="no such call here")
def test_a_process_of_another_user_that_has_a_dead_ones_number_is_no_sibling(tmp_path: Path) -> None:
    shares(tmp_path / "held", 1, 0, pid=1)
    one = shares(tmp_path / "held", 0, 50)
    user = os.geteuid()
    os.setresuid(user or NOBODY, user or NOBODY, user)
    try:
        assert not one.above()
    finally:
        os.setresuid(user, user, user)


class Hello:
    """An application that says ok."""

    ids = IdSource(SystemClock(), Random(1))

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        self.asked += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def flood(_scope: Any, _receive: Any, send: Any) -> None:
    """More than any buffer on the way takes, and then the end of the connection."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": bytes(64_000_000)})


class Listener(socket.socket):
    """A socket that may be out of descriptors."""

    exhausted = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self.exhausted:
            self.exhausted -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


class Serving:
    """An acceptor on a port of its own."""

    def __init__(self, shares: Shares, tls: ssl.SSLContext | None, app: Any) -> None:
        self.shares = shares
        self.listener = Listener()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.port: int = self.listener.getsockname()[1]
        self.config = config = uvicorn.Config(app, log_config=None, lifespan="off")
        config.load()
        self.state = ServerState()
        self.writers: list[asyncio.StreamWriter] = []
        self.acceptor = Acceptor(
            self.listener, shares, lambda: BoundedConnection(config, self.state, app_state={}), tls
        )

    async def connect(
        self, tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=tls)
        self.writers.append(writer)
        return reader, writer

    async def ask(self, tls: ssl.SSLContext | None = None) -> None:
        async with asyncio.timeout(10):
            reader, writer = await self.connect(tls)
            writer.write(ASK)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")

    def close(self) -> None:
        """As uvicorn does when it is told to stop."""
        self.acceptor.close()
        for one in list(self.state.connections):
            one.shutdown()

    async def end(self) -> None:
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self.holds(0)

    async def holds(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.shares.held != count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(shares: Shares, tls: ssl.SSLContext | None = None, app: Any = None) -> AsyncIterator[Serving]:
    made = Serving(shares, tls, app or Hello())
    try:
        yield made
        await made.end()
    finally:
        made.acceptor.close()
        made.listener.close()


async def test_connections_are_counted_while_they_stand(tmp_path: Path) -> None:
    async with serving(Shares(tmp_path / "held", 0)) as server:
        await asyncio.gather(*(server.ask() for _ in range(40)))
        assert server.shares.held == 40
        await server.end()


async def test_nobody_waits_for_a_sibling_that_hangs(tmp_path: Path, sleeper: Any) -> None:
    mine = Shares(tmp_path / "held", 0)
    shares(tmp_path / "held", 1, 0, sleeper.pid)
    async with serving(mine) as server:
        began = asyncio.get_running_loop().time()
        for _ in range(8):
            await server.ask()
        assert mine.held == 8
        waited = 8 - 2 * SLACK - 1  # from where on it holds more than its part
        assert asyncio.get_running_loop().time() - began >= waited * PATIENCE_S


async def test_all_that_a_sibling_left_waiting_is_taken_at_once(tmp_path: Path, sleeper: Any) -> None:
    mine = shares(tmp_path / "held", 0, 50)
    shares(tmp_path / "held", 1, 0, sleeper.pid)
    async with serving(mine) as server:
        with contextlib.ExitStack() as crowd:
            for _ in range(BURST):
                crowd.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            server.acceptor._take()
            assert mine.held == 50
            server.acceptor._timer.cancel()  # type: ignore[union-attr]
            server.acceptor._stepped_back -= PATIENCE_S
            server.acceptor._look_again()
            assert mine.held == 50 + BURST
        await server.holds(50)
        for _ in range(50):
            mine.closed()


async def test_out_of_descriptors_it_goes_on_as_soon_as_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "EXHAUSTED_S", 0.05)
    async with serving(Shares(tmp_path / "held", 0)) as server:
        server.listener.exhausted = 2
        await server.ask()
        assert server.listener.exhausted == 0


async def test_what_never_began_is_not_held(tmp_path: Path) -> None:
    key, cert = make_certificate(tmp_path)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(cert, key)
    theirs = ssl.create_default_context(cafile=str(cert))
    theirs.check_hostname = False
    async with serving(Shares(tmp_path / "held", 0), ours) as server:
        reader, writer = await server.connect()
        await server.holds(1)
        writer.write(b"this is not TLS\r\n\r\n")
        await reader.read()  # an alert, then the end
        await server.holds(0)
        await server.ask(theirs)
        assert server.shares.held == 1


async def test_who_never_reads_does_not_keep_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.05)
    async with serving(Shares(tmp_path / "held", 0), app=flood) as server:
        _, writer = await server.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(ASK)
        await server.holds(1)
        await server.holds(0)


async def test_who_comes_while_it_closes_is_let_go(tmp_path: Path) -> None:
    async with serving(Shares(tmp_path / "held", 0)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            assert server.acceptor._take_one()
            server.acceptor.close()  # before the connection has begun
            client.setblocking(False)
            async with asyncio.timeout(10):
                assert await asyncio.get_running_loop().sock_recv(client, 100) == b""
        await server.holds(0)
        assert not server.state.connections


def test_the_table_names_this_process(tmp_path: Path) -> None:
    Shares(tmp_path / "held", 1)
    table = memoryview((tmp_path / "held").read_bytes()).cast("q")
    assert list(table[:4]) == [0, 0, os.getpid(), 0]
    assert not any(table[4:])


def test_there_is_a_place_for_a_worker_that_replaces_the_last_one(tmp_path: Path) -> None:
    last = shares(tmp_path / "held", MOST_WORKERS, 3)
    assert last.held == 3


@pytest.mark.parametrize("rest", [b"G", b"GET / HTTP/1.1\r\nhost:", b"\r\n", b"\r\n\r\n"])
async def test_who_falls_silent_after_an_answer_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.1)
    async with serving(Shares(tmp_path / "held", 0)) as server, asyncio.timeout(10):
        server.config.timeout_keep_alive = 1
        reader, writer = await server.connect()
        writer.write(ASK)
        await reader.readuntil(b"ok")
        writer.write(rest)
        told = await reader.read()
        assert told.startswith(b"HTTP/1.1 408") if rest.strip() else not told


async def test_a_connection_rests_from_its_last_answer(tmp_path: Path) -> None:
    async with serving(Shares(tmp_path / "held", 0)) as server, asyncio.timeout(10):
        server.config.timeout_keep_alive = 60
        reader, writer = await server.connect()
        timers = []
        for _ in range(2):
            writer.write(ASK)
            await reader.readuntil(b"ok")
            (mine,) = server.state.connections
            timers.append(mine._rest_timer)
        assert timers[0] is timers[1] is not None  # one lasts for many answers
        mine._rest_over()
        writer.write(ASK)
        await reader.readuntil(b"ok")  # it has not rested long enough
        assert mine._rest_timer is not timers[0]
        mine._rests_since -= 60
        mine._rest_over()
        assert await reader.read() == b""


async def test_one_task_answers_the_requests_of_a_connection(tmp_path: Path) -> None:
    answering: list[Any] = []

    async def noting(_scope: Any, _receive: Any, send: Any) -> None:
        answering.append(asyncio.current_task())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        if len(answering) == 3:
            await cleaned_up.wait()

    cleaned_up = asyncio.Event()
    async with serving(Shares(tmp_path / "held", 0), app=noting) as server, asyncio.timeout(10):
        reader, writer = await server.connect()
        for _ in range(4):
            writer.write(ASK)
            await reader.readuntil(b"ok")
        first, *others = answering
        assert others[:2] == [first, first]
        assert others[2] is not first  # it is still busy with the third, and nobody waits for that
        assert server.state.tasks == {first}
        cleaned_up.set()
        writer.close()
        await asyncio.wait({first})
        assert not server.state.tasks


async def test_who_has_just_come_is_answered_while_it_closes(tmp_path: Path) -> None:
    async with serving(Shares(tmp_path / "held", 0)) as server, asyncio.timeout(10):
        fresh, asking, idle = [await server.connect() for _ in range(3)]
        for reader, writer in (asking, idle):
            writer.write(ASK)
            await reader.readuntil(b"ok")
        asking[1].write(ASK[:9])
        await server.ask()  # by then it has read what was written before
        server.close()
        assert await idle[0].read() == b""
        for (reader, writer), rest in ((fresh, ASK), (asking, ASK[9:])):
            writer.write(rest)
            told = await reader.read()
            assert told.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in told


async def test_who_has_just_come_and_is_silent_is_let_go_while_it_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LAST_S", 0.1, raising=False)
    async with serving(Shares(tmp_path / "held", 0)) as server, asyncio.timeout(10):
        reader, _ = await server.connect()
        await server.holds(1)
        server.close()
        assert await reader.read() == b""


async def test_who_begins_no_tls_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, cert = make_certificate(tmp_path)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(cert, key)
    monkeypatch.setattr(accepting, "HEAD_S", 0.1, raising=False)
    async with serving(Shares(tmp_path / "held", 0), ours) as server, asyncio.timeout(10):
        reader, _ = await server.connect()
        assert await reader.read() == b""
        await server.holds(0)


async def test_who_asks_on_and_on_without_waiting_is_sent_away(tmp_path: Path) -> None:
    async with serving(Shares(tmp_path / "held", 0)) as server, asyncio.timeout(10):
        reader, writer = await server.connect()
        writer.write(ASK * 30)
        for _ in range(30):
            await reader.readuntil(b"ok")
        writer.write(ASK * 20 * MOST_WAITING)
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        await server.holds(0)
        assert server.config.app.asked == 30 + 1 + MOST_WAITING


def test_a_head_whose_client_has_left_is_no_error() -> None:
    """On the workers' loop, which minds a write to what is closed."""
    wrong: list[dict[str, Any]] = []

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: wrong.append(context))
        ours, theirs = socket.socketpair()
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
        theirs.close()
        transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        Gathered(transport, loop).write(b"HTTP/1.1 200 OK")
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(leave())
    assert not wrong

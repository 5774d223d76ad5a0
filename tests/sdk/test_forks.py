"""A client that is older than a fork: the child neither hangs nor meets its parent's connections."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

import pytest
from headgate._core import forks
from headgate._core.metering import Budget, Meter
from headgate._core.pacing import Pacer
from headgate._core.tickets import Journal
from headgate._sync.colour import Turn

from .test_transports import Peer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")

PROGRAM = """
import asyncio, inspect, os, sys
from headgate import AsyncHeadgate, Headgate

address, colour, transport, begun = sys.argv[1:]
kind = Headgate if colour == "sync" else AsyncHeadgate
client = kind(api_key="hg_x", base_url=address, transport=transport, timeout=20)
ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

async def talk(client):
    answer = client.chat.completions.create(**ask)
    answer = await answer if inspect.isawaitable(answer) else answer
    if colour == "sync":
        with client.chat.completions.stream(**ask) as stream:
            return answer.text, stream.final().text
    async with client.chat.completions.stream(**ask) as stream:
        return answer.text, (await stream.final()).text

def say(who, client=client):
    print(who, *asyncio.run(talk(client)), flush=True)

if begun == "begun":
    say("parent")
child = os.fork()
if child == 0:
    say("child")
    say("child", kind(api_key="hg_x", base_url=address, transport=transport, timeout=20))
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
say("parent")
"""


@pytest.fixture
def server() -> Iterator[Peer]:
    """Answers say which connection they came on."""

    async def name_it(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = b"text/event-stream" in peer.heads[-1]
        message = b'{"index": 0, "%s": {"role": "assistant", "content": "%d"}}'
        message %= (b"delta" if stream else b"message", writer.get_extra_info("peername")[1])
        body, kind = b'{"id": "x", "model": "m", "choices": [%s]}' % message, b"application/json"
        if stream:
            body, kind = b"data: %s\n\ndata: [DONE]\n\n" % body, b"text/event-stream"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(body)))
        writer.write(body)

    peer = Peer(name_it)
    yield peer
    peer.close()


@pytest.mark.parametrize("begun", ["begun", "new"])
@pytest.mark.parametrize("transport", ["httpx", "fast"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_forked_child_has_connections_of_its_own(server: Peer, colour: str, transport: str, begun: str) -> None:
    if transport == "fast":
        pytest.importorskip("pyreqwest")
    command = [sys.executable, "-c", PROGRAM, server.url, colour, transport, begun]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = [(who, set(numbers)) for who, *numbers in map(str.split, done.stdout.splitlines())]
    parents = set[str]().union(*(numbers for who, numbers in said if who == "parent"))
    first, second = (numbers for who, numbers in said if who == "child")
    assert first
    assert second
    assert not parents & (first | second)
    assert not first & second


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (Meter, lambda one: one.rows()),
        (lambda: Budget("1"), lambda one: one.remaining),
        (Journal, lambda one: one.rows()),
        (Pacer, lambda one: one.take(0.0, 1.0)),
        (Turn, lambda one: one.lock().acquire(blocking=False) or pytest.fail("taken")),
    ],
)
def test_a_forked_child_takes_over_no_lock(
    make: Callable[[], Any], use: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    assert one in forks._heirs
    monkeypatch.setattr(forks, "_heirs", WeakSet([one]))
    one._lock.acquire()  # as another thread had it at the moment of the fork
    forks.forked()
    use(one)

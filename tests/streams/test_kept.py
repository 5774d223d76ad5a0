"""One kept stream: made as it is read, on its own while nobody reads, never more than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.layout import Layout
from headgate_gateway.streams import Ahead, Busy, KeptStream, NotKept, Siblings, Streams, Superseded
from headgate_gateway.streams.stream import MAX_BYTES

HEAD = [(b"content-type", b"text/event-stream")]


def frame(number: int, size: int = 0) -> bytes:
    return b"data: %d%s\n\n" % (number, b"x" * size)


class Maker:
    """Makes a stream as fast as it may."""

    def __init__(self, stream: KeptStream, count: int = 1_000_000, size: int = 0) -> None:
        self.made = 0
        self._stream, self._count, self._size = stream, count, size
        self.task = asyncio.create_task(self._make())
        stream.made_by(self.task)

    async def _make(self) -> None:
        while self.made < self._count:
            self._stream.add(frame(self.made, self._size))
            self.made += 1
            await self._stream.wanted()
            await asyncio.sleep(0)
        self._stream.end(b"data: end\n\n", replayable=False)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    made = Streams()
    yield made
    made.close()


def kept(streams: Streams, request_id: str = "r", seconds: float = 60) -> KeptStream:
    stream = streams.keep(request_id, HEAD, seconds)
    assert stream is not None
    return stream


async def test_it_is_made_as_it_is_read(streams: Streams) -> None:
    stream = kept(streams)
    reader = stream.attach(-1)
    maker = Maker(stream)
    for number in range(20):
        piece = await reader.next()
        assert piece.data == b"id: r:%d\n%s" % (number, frame(number))
        await turns()
        assert maker.made == number + 1, "nothing is made before this is handed over"


async def test_alone_it_goes_on_until_there_is_no_room(streams: Streams) -> None:
    stream = kept(streams)
    reader = stream.attach(-1)
    maker = Maker(stream, size=10_000)
    await reader.next()
    reader.close()
    await until(lambda: stream.frames.size > MAX_BYTES)
    await turns()
    at = maker.made
    assert at < 2 * MAX_BYTES / 10_000
    await turns()
    assert maker.made == at, "it waits"
    reader = stream.attach(0)
    piece = await reader.next()
    assert piece.data.count(b"id: ") == at - 1, "and nothing was dropped that nobody had read"
    await reader.next()
    assert stream.frames.size <= MAX_BYTES


async def test_what_was_read_is_dropped_when_there_is_no_room(streams: Streams) -> None:
    stream = kept(streams)
    reader = stream.attach(-1)
    Maker(stream, size=10_000)
    for _ in range(300):
        await reader.next()
    assert stream.frames.first > 100
    assert stream.frames.size <= MAX_BYTES
    with pytest.raises(Ahead):
        stream.attach(stream.frames.next)
    assert (await reader.next()).data, "a wrong question does no harm"
    with pytest.raises(NotKept):
        stream.attach(5)
    assert streams.find("r") is None, "a stream that its client cannot go on with is given up"


async def test_all_together_have_a_bound() -> None:
    streams = Streams(max_bytes=100_000)
    many = [kept(streams, f"r{number}") for number in range(10)]
    makers = [Maker(stream, size=1000) for stream in many]
    await until(lambda: sum(stream.frames.size for stream in many) >= 100_000)
    await turns()
    made = [maker.made for maker in makers]
    await turns()
    assert made == [maker.made for maker in makers]
    assert sum(stream.frames.size for stream in many) < 120_000
    streams.close()
    await asyncio.gather(*(maker.task for maker in makers), return_exceptions=True)
    assert all(maker.task.cancelled() for maker in makers)
    assert len(streams) == 0


async def test_no_more_than_so_many() -> None:
    streams = Streams(most=2)
    assert [streams.keep(name, HEAD, 1) is not None for name in "abc"] == [True, True, False]
    kept_ones = streams.find("a")
    assert kept_ones is not None
    kept_ones.give_up()
    assert streams.keep("c", HEAD, 1) is not None
    streams.close()


async def test_nobody_comes_back(streams: Streams) -> None:
    stream = kept(streams, seconds=0.01)
    maker = Maker(stream)
    stream.attach(-1).close()
    await asyncio.wait({maker.task})
    assert maker.task.cancelled()
    assert streams.find("r") is None


async def test_who_comes_back_in_time_stops_the_clock(streams: Streams) -> None:
    stream = kept(streams, seconds=0.01)
    Maker(stream)
    stream.attach(-1).close()
    reader = stream.attach(-1)
    await asyncio.sleep(0.05)
    assert (await reader.next()).data


async def test_one_reader_at_a_time(streams: Streams) -> None:
    stream = kept(streams)
    Maker(stream)
    first = stream.attach(-1)
    with pytest.raises(Busy):
        stream.attach(-1, steal=False)
    while (await first.next()).data.count(b"id: r:3") == 0:
        continue
    waiting = asyncio.create_task(first.next())
    await turns(1)
    second = stream.attach(0)
    with pytest.raises(Superseded):
        while True:
            await waiting
            waiting = asyncio.create_task(first.next())
    first.close()
    assert stream.is_read, "who was superseded takes nothing along"
    assert (await second.next()).data.startswith(b"id: r:1\n")


async def test_an_ended_stream_is_kept_for_its_last_events(streams: Streams) -> None:
    stream = kept(streams)
    maker = Maker(stream, count=3)
    await maker.task
    assert streams.find("r") is stream
    piece = await stream.attach(1).next()
    assert piece.last
    assert piece.data == b"id: r:2\n" + frame(2) + b"id: r:3\ndata: end\n\n"


async def test_one_that_the_ledger_can_replay_is_not_kept(streams: Streams) -> None:
    stream = kept(streams)
    stream.attach(-1).close()
    stream.end(frame(0), replayable=True)
    assert streams.find("r") is None


class Worker:
    def __init__(self, layout: Layout, number: int) -> None:
        self.streams = Streams()
        self.siblings = Siblings(layout, number, self.streams)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[list[Worker]]:
    """Two workers that know of each other's sockets, and a dead one's socket."""
    layout = Layout(tmp_path / "data", tmp_path)
    made = [Worker(layout, number) for number in (0, 1)]
    layout.worker_socket(7).touch()
    for worker in made:
        await worker.siblings.start()
    yield made
    for worker in made:
        worker.streams.close()
        await worker.siblings.close()


@pytest.mark.parametrize("asked", [0, None], ids=["by number", "everyone"])
async def test_read_at_another_worker_it_is_made_as_it_is_read(workers: list[Worker], asked: int | None) -> None:
    stream = kept(workers[0].streams)
    maker = Maker(stream, count=30)
    await until(lambda: maker.made == 30)
    reading = await workers[1].siblings.attach(asked, "r", 9)
    assert reading.head == HEAD
    piece = await reading.next()
    assert piece.data.startswith(b"id: r:10\n")
    reading.close()
    second = kept(workers[0].streams, "s")
    reading = await workers[1].siblings.attach(asked, "s", -1)
    maker = Maker(second)
    for number in range(5):
        assert (await reading.next()).data == b"id: s:%d\n%s" % (number, frame(number))
        await turns()
        assert maker.made == number + 1
    reading.close()
    await until(lambda: not second.is_read)


async def test_what_another_worker_refuses(workers: list[Worker]) -> None:
    there, here = workers[0].streams, workers[1].siblings
    for worker in (0, 1, 5, 7, None):
        with pytest.raises(NotKept):
            await here.attach(worker, "nothing", -1)
    stream = kept(there)
    Maker(stream)
    reading = await here.attach(0, "r", -1)
    with pytest.raises(Busy):
        await here.attach(0, "r", -1, steal=False)
    with pytest.raises(Ahead):
        await here.attach(0, "r", 10_000_000)
    newer = await here.attach(0, "r", -1)
    with pytest.raises(Superseded):
        while True:
            await reading.next()
    assert (await newer.next()).data
    assert stream.is_read


async def test_finished_waits_for_makers_and_readers(workers: list[Worker]) -> None:
    streams = workers[0].streams
    await streams.finished()
    stream = kept(streams)
    waiting = asyncio.create_task(streams.finished())
    reading = await workers[1].siblings.attach(0, "r", -1)
    stream.end(frame(0), replayable=False)
    await turns()
    assert not waiting.done(), "its last events are still to be handed over"
    assert (await reading.next()).last
    await asyncio.wait_for(waiting, 10)

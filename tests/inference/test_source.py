from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from headgate_gateway.inference.deadlines import Deadlines
from headgate_gateway.inference.source import Detached, Source
from headgate_plugin_api import Cancelled, Event, TextDelta, UpstreamFailed, UpstreamTimeout

A = TextDelta(text="a")


class Upstream:
    """An async generator that notes how it was left."""

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.left = 0

    async def run(self) -> AsyncIterator[Event]:
        try:
            for step in self.script:
                if step is ...:
                    await asyncio.Event().wait()
                elif isinstance(step, BaseException):
                    raise step
                else:
                    yield step
        finally:
            self.left += 1

    def source(self, timeout_s: float = 30.0) -> Source:
        return Source(self.run(), asyncio.get_running_loop().time() + timeout_s, Deadlines(), "the target")


async def test_events_then_none_for_ever():
    source = Upstream(A, A).source()
    assert [await source.next() for _ in range(4)] == [A, A, None, None]
    await source.close()


async def test_a_read_ends_at_the_deadline_and_so_does_every_later_one():
    upstream = Upstream(A, ...)
    source = upstream.source(0.05)
    await source.next()
    for _ in range(2):
        with pytest.raises(UpstreamTimeout, match="the target"):
            await source.next()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0  # the reader itself was not cancelled
    await source.close()
    assert upstream.left == 1


async def test_an_interrupt_reaches_a_read_in_another_task():
    upstream = Upstream(...)
    source = upstream.source()
    reading = asyncio.create_task(source.next())
    await asyncio.sleep(0)
    source.interrupt()
    source.interrupt()
    with pytest.raises(Cancelled):
        await reading
    with pytest.raises(Cancelled):
        await source.next()
    await source.close()


async def test_closing_waits_for_the_read_under_way():
    upstream = Upstream(...)
    source = upstream.source()
    reading = asyncio.create_task(source.next())
    await asyncio.sleep(0)
    await source.close()
    await source.close()
    assert upstream.left == 1
    with pytest.raises(Cancelled):
        await reading


async def test_a_cancelled_reader_stays_cancelled_even_when_it_is_late_as_well():
    upstream = Upstream(...)
    source = upstream.source(0.05)
    reading = asyncio.create_task(source.next())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(reading.cancel)
    source.interrupt()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert reading.cancelled()
    await source.close()


async def test_a_backend_with_a_bug_is_a_failed_upstream():
    source = Upstream(ZeroDivisionError("oops")).source()
    with pytest.raises(UpstreamFailed, match=r"the target broke$") as caught:
        await source.next()
    assert caught.value.inner == "ZeroDivisionError: oops"
    await source.close()


async def test_a_backend_that_will_not_let_go_delays_nobody_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("headgate_gateway.inference.source.CLOSE_S", 0.05)

    async def clinging() -> AsyncIterator[Event]:
        try:
            yield A
            yield A
        finally:
            await asyncio.sleep(60)

    source = Source(clinging(), asyncio.get_running_loop().time() + 30, Deadlines(), "the target")
    await source.next()
    await source.close()


async def test_a_detached_source_outlives_its_cancelled_reader():
    upstream = Upstream(A, A, A)
    source = Detached(upstream.source())
    assert await source.next() == A
    reading = asyncio.create_task(source.next())
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    rest = [await source.next() for _ in range(4)]
    assert rest == [A, A, None, None]
    await source.close()
    assert upstream.left == 1


async def test_a_detached_source_passes_errors_and_interrupts_on():
    source = Detached(Upstream(A, UpstreamFailed("x")).source())
    assert await source.next() == A
    for _ in range(2):
        with pytest.raises(UpstreamFailed):
            await source.next()
    await source.close()
    waiting = Detached(Upstream(...).source())
    reading = asyncio.create_task(waiting.next())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.interrupt()
    with pytest.raises(Cancelled):
        await reading
    await waiting.close()


async def test_closing_a_detached_source_frees_a_reader_in_another_task():
    source = Detached(Upstream(...).source())
    reading = asyncio.create_task(source.next())
    await asyncio.sleep(0)
    await source.close()
    with pytest.raises(Cancelled):
        await reading


async def test_a_detached_source_reads_only_so_far_ahead():
    given = 0

    async def endless() -> AsyncIterator[Event]:
        nonlocal given
        while True:
            given += 1
            yield A

    source = Detached(Source(endless(), asyncio.get_running_loop().time() + 30, Deadlines(), "the target"))
    for _ in range(300):
        await asyncio.sleep(0)
    assert given <= 66
    await source.close()

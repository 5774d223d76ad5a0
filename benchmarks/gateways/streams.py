"""Many streams at once through the gateway, every chunk counted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks.gateways.load import REQUEST
from benchmarks.gateways.machine import cpu_seconds, memory_mb, pin
from benchmarks.ports import free_port

RAMP_S = 2.0
"""Seconds over which the streams are opened."""

_CHUNK = re.compile(rb'"content":"(\d+)@([0-9.]+) "')


@dataclass
class Streamed:
    """What became of the streams.

    Attributes:
        streams: Opened.
        at_once: Open together at the most.
        whole: That brought every chunk, in order, and the end mark.
        chunks: That arrived.
        lost: That did not.
        chunks_per_s: That arrived a second while all streams were open.
        late_p50_ms: Median time from the provider's write to our reading, through the gateway.
        late_p99_ms: Time that 99 of 100 chunks keep.
        worker_us: Processor time of the workers per chunk.
        memory_mb: Resident memory of the workers with the streams open.
    """

    streams: int
    at_once: int = 0
    whole: int = 0
    chunks: int = 0
    lost: int = 0
    chunks_per_s: float = 0.0
    late_p50_ms: float = 0.0
    late_p99_ms: float = 0.0
    worker_us: float = 0.0
    memory_mb: float = 0.0
    errors: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@contextmanager
def steady_upstream(chunks: int, per_s: float, core: int) -> Iterator[int]:
    """A provider whose every answer is `chunks` chunks, `per_s` a second. Gives its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gateways.stream_upstream", str(port), str(chunks), str(per_s)]
    )
    pin(process.pid, core)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


class Reader(asyncio.Protocol):
    """One stream."""

    def __init__(self, request: bytes, lateness: list[float]) -> None:
        self._request = request
        self._lateness = lateness
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self.numbers = 0
        self.in_order = True
        self.done = False
        self.failure = ""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        lines = (self._rest + body).split(b"\n\n")
        self._rest = lines.pop()
        now = time.monotonic()
        for line in lines:
            if found := _CHUNK.search(line):
                self.in_order = self.in_order and int(found[1]) == self.numbers
                self.numbers += 1
                self._lateness.append(now - float(found[2]))
            elif line == b"data: [DONE]":
                self.done = True

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._parser.get_status_code() != 200:
            self.failure = f"status {self._parser.get_status_code()}: {self._rest[:200].decode('replace')}"
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.failure = self.failure or (repr(error) if error else "")
        if not self.ended.done():
            self.ended.set_result(None)


def run_streams(
    url: str, key: str, *, streams: int, chunks: int, per_s: float, core: int, workers: tuple[int, ...]
) -> Streamed:
    """Open streams, read all to the end, and say what became of them."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return uvloop.run(_measured(url, key, streams, chunks, per_s, workers))
    finally:
        os.sched_setaffinity(0, everywhere)


async def _measured(
    url: str, key: str, streams: int, chunks: int, per_s: float, workers: tuple[int, ...]
) -> Streamed:
    address = urlsplit(url)
    body = json.dumps({**json.loads(REQUEST), "stream": True, "max_tokens": chunks * 16}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    lateness: list[float] = []
    readers: list[Reader] = []
    loop = asyncio.get_running_loop()
    used = cpu_seconds(workers)
    began = loop.time()
    for number in range(streams):
        await asyncio.sleep(max(0.0, began + RAMP_S * number / streams - loop.time()))
        _, reader = await loop.create_connection(
            lambda: Reader(head.encode() + body, lateness), address.hostname or "", address.port or 80
        )
        readers.append(reader)
    result = Streamed(streams=streams, at_once=sum(not reader.ended.done() for reader in readers))
    result.memory_mb = round(memory_mb(workers), 1)
    middle, arrived = loop.time(), len(lateness)
    await asyncio.sleep(max(1.0, chunks / per_s - RAMP_S - 2.0))
    result.chunks_per_s = round((len(lateness) - arrived) / (loop.time() - middle), 1)
    async with asyncio.timeout(chunks / per_s + 60):
        await asyncio.gather(*(reader.ended for reader in readers))
    result.whole = sum(r.done and r.in_order and r.numbers == chunks for r in readers)
    result.chunks = sum(reader.numbers for reader in readers)
    result.lost = streams * chunks - result.chunks
    result.worker_us = round((cpu_seconds(workers) - used) / max(1, result.chunks) * 1e6, 1)
    lateness.sort()
    result.late_p50_ms = round(lateness[len(lateness) // 2] * 1000, 2) if lateness else 0.0
    result.late_p99_ms = round(lateness[int(len(lateness) * 0.99)] * 1000, 2) if lateness else 0.0
    result.errors = sorted({reader.failure for reader in readers if reader.failure})[:5]
    return result

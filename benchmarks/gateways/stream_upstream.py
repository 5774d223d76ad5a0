"""A provider that streams at a steady pace: `python -m benchmarks.gateways.stream_upstream PORT CHUNKS PER_S`.

Every chunk says its number and the monotonic time at which it left, so that whoever reads it knows what is missing
and how late the rest is. All streams share one timer: what is measured is the gateway, not this.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import httptools
import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"fixed","choices":[%s]%s}'

_CONTENT = _EVENT % ('{"index":0,"delta":{"content":"%d@%.4f "},"finish_reason":null}', "")


def _chunk(document: str) -> bytes:
    data = f"data: {document}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def content(number: int) -> bytes:
    """The chunk with a number, as it leaves now."""
    return _chunk(_CONTENT % (number, time.monotonic()))


class Streams:
    """Every stream under way; writes a chunk to each in every turn."""

    def __init__(self, chunks: int, per_s: float) -> None:
        self._open: dict[asyncio.Transport, int] = {}
        self._chunks = chunks
        self._pause = 1 / per_s
        usage = {"prompt_tokens": 24, "completion_tokens": chunks, "total_tokens": 24 + chunks}
        finish = '{"index":0,"delta":{},"finish_reason":"stop"}'
        self._end = (
            _chunk(_EVENT % (finish, ""))
            + _chunk(_EVENT % ("", f',"usage":{json.dumps(usage)}'))
            + _chunk("[DONE]")
            + b"0\r\n\r\n"
        )

    def begin(self, transport: asyncio.Transport) -> None:
        """A request came whole."""
        transport.write(_HEAD)
        self._open[transport] = 0

    def end(self, transport: asyncio.Transport) -> None:
        """The reader has left."""
        self._open.pop(transport, None)

    async def run(self) -> None:
        """Write for ever. Streams are spread over the pause, as unrelated ones would be."""
        loop = asyncio.get_running_loop()
        parts, turn = 10, 0
        due = loop.time()
        while True:
            for transport, number in list(self._open.items())[turn % parts :: parts]:
                self._write(transport, number)
            turn += 1
            due += self._pause / parts
            await asyncio.sleep(max(0.0, due - loop.time()))

    def _write(self, transport: asyncio.Transport, number: int) -> None:
        if number < self._chunks:
            transport.write(content(number))
            self._open[transport] = number + 1
        else:
            transport.write(self._end)
            del self._open[transport]


class Connection(asyncio.Protocol):
    """One connection of the gateway."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._streams.begin(self._transport)

    def connection_lost(self, _error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._streams.end(self._transport)


async def serve(port: int, chunks: int, per_s: float) -> None:
    """Serve until killed."""
    streams = Streams(chunks, per_s)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(streams), "127.0.0.1", port, backlog=4096)
    await streams.run()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))

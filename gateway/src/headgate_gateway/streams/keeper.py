"""The resumable streams of one worker. May import stream."""

from __future__ import annotations

from typing import Final

from headgate_gateway.streams.stream import Head, KeptStream

MOST: Final = 1024
"""Streams that a worker keeps; one more is served as a plain stream."""

MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all streams of a worker. Over it they keep nothing that was handed over, and wait where nobody reads."""


class Streams:
    """Keeps streams.

    Args:
        most: How many.
        max_bytes: Of all together.
    """

    def __init__(self, most: int = MOST, max_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._max_bytes = max_bytes
        self._bytes = 0
        self._streams: dict[str, KeptStream] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._streams)

    def keep(self, request_id: str, head: Head, seconds: float) -> KeptStream | None:
        """A new stream; None when there are too many."""
        if len(self._streams) >= self._most:
            return None
        stream = KeptStream(request_id, head, seconds, grown=self._grown, gone=self._gone)
        self._streams[request_id] = stream
        return stream

    def find(self, request_id: str) -> KeptStream | None:
        """The stream of a request."""
        return self._streams.get(request_id)

    async def finished(self) -> None:
        """Wait until no stream is made or read: while a server drains, clients may still come back for theirs."""
        while busy := [stream for stream in self._streams.values() if stream.busy]:
            await busy[0].changed()

    def cut(self) -> None:
        """Give up what nobody reads; who does read is told by whoever makes the stream."""
        for stream in list(self._streams.values()):
            if not stream.is_read:
                stream.give_up()

    def close(self) -> None:
        """Give up all."""
        for stream in list(self._streams.values()):
            stream.give_up()

    def _grown(self, size: int) -> bool:
        self._bytes += size
        return self._bytes < self._max_bytes

    def _gone(self, stream: KeptStream) -> None:
        self._bytes -= stream.frames.size
        self._streams.pop(stream.request_id, None)

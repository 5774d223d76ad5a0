"""Server-sent events with numbers, `id: <request id>:<n>`, dense from 0: a client can say where it stopped.

Also how a streamed answer is stored so that its events can be made again one by one. May import the plugin API.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec
from headgate_plugin_api import Event, TextDelta

Runs = tuple[tuple[int, ...], ...]
"""For each stored event: the lengths of the pieces of text that it was; empty where it was one event."""

_END = b"\n\n"


def frames_of(data: bytes) -> list[bytes]:
    """The events in what a dialect's writer made; JSON has no bare line ends, so empty lines end events."""
    return [frame + _END for frame in data.split(_END) if frame]


class Ahead(Exception):
    """The stream has not come as far as the client says it has read."""


def numbered(request_id: str, data: bytes, *, after: int = -1) -> bytes:
    """A whole stream with its numbers, from behind one of them on.

    Raises:
        Ahead: It has no such one.
    """
    name = request_id.encode()
    frames = frames_of(data)
    if after >= len(frames):
        raise Ahead
    return b"".join(b"id: %s:%d\n%s" % (name, n, frames[n]) for n in range(after + 1, len(frames)))


class Frames:
    """The events of one stream, of which the oldest may have been dropped.

    Attributes:
        first: Number of the oldest that is kept.
        size: Bytes that are kept.
    """

    def __init__(self, request_id: str) -> None:
        self._name = request_id.encode()
        self._kept: deque[bytes] = deque()
        self.first = 0
        self.size = 0

    @property
    def next(self) -> int:
        """The number that the next event gets."""
        return self.first + len(self._kept)

    def add(self, data: bytes) -> int:
        """Take events; returns by how many bytes the stream grew."""
        grown = 0
        for frame in frames_of(data):
            event = b"id: %s:%d\n%s" % (self._name, self.next, frame)
            self._kept.append(event)
            grown += len(event)
        self.size += grown
        return grown

    def since(self, number: int) -> bytes:
        """The events from a number on, which must be kept or be `next`."""
        start = number - self.first
        return b"".join(self._kept[place] for place in range(start, len(self._kept)))

    def drop(self) -> int:
        """Drop the oldest; returns its bytes."""
        gone = len(self._kept.popleft())
        self.first += 1
        self.size -= gone
        return gone


def join_runs(events: Sequence[Event]) -> tuple[tuple[Event, ...], Runs]:
    """The same answer in few events, and what it takes to part them again."""
    joined: list[Event] = []
    runs: list[tuple[int, ...]] = []
    pieces: list[TextDelta] = []

    def close() -> None:
        if pieces:
            first = pieces[0]
            text = "".join(piece.text for piece in pieces)
            joined.append(TextDelta(text=text, index=first.index, reasoning=first.reasoning))
            runs.append(tuple(len(piece.text) for piece in pieces))
            pieces.clear()

    for event in events:
        if isinstance(event, TextDelta) and not event.extra:
            if pieces and (pieces[0].index, pieces[0].reasoning) != (event.index, event.reasoning):
                close()
            pieces.append(event)
        else:
            close()
            joined.append(event)
            runs.append(())
    close()
    return tuple(joined), tuple(runs)


def split_runs(events: Sequence[Event], runs: Runs) -> list[Event]:
    """The events that `join_runs` was given, but for their token counts."""
    parted: list[Event] = []
    for event, lengths in zip(events, runs, strict=True):
        if not lengths or not isinstance(event, TextDelta):
            parted.append(event)
            continue
        start = 0
        for length in lengths:
            parted.append(msgspec.structs.replace(event, text=event.text[start : start + length]))
            start += length
    return parted

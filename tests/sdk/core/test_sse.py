"""The event decoder: any split of the bytes gives the same events."""

from __future__ import annotations

import pytest
from headgate._core.sse import EventDecoder, EventTooLarge, ServerSentEvent
from hypothesis import given
from hypothesis import strategies as st

LINES = st.sampled_from(
    [
        b"data: one",
        b"data:two",
        b"data",
        b"data: \xc3\xa4\xf0\x9f\x98\x80",
        b": comment",
        b"event: error",
        b"id: req_1:7",
        b"id: with\0null",
        b"retry: 1500",
        b"retry: soon",
        b"unknown: x",
        b"",
        b"",
        b'data: {"a": 1}',
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=30).map(lambda parts: b"".join(a + b for a, b in parts))


def decode(chunks: list[bytes]) -> list[ServerSentEvent]:
    decoder = EventDecoder()
    # The empty line at the end dispatches what a CR held back.
    return [event for chunk in [*chunks, b"\n", b"\n"] for event in decoder.feed(chunk)]


@given(STREAMS, st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_any_split_gives_the_same_events(stream: bytes, cuts: list[int], bom: bool) -> None:
    if bom:
        stream = b"\xef\xbb\xbf" + stream
    whole = decode([stream])
    places = sorted({min(cut, len(stream)) for cut in cuts})
    chunks = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    assert decode(chunks) == whole
    assert decode([stream[at : at + 1] for at in range(len(stream))]) == whole


def test_fields_mean_what_the_standard_says() -> None:
    decoder = EventDecoder()
    events = decoder.feed(b"id: 1\nevent: error\ndata: a\ndata:  b\n\ndata: c\n\nid\ndata: d\n\nretry: 20\n\n")
    assert events == [
        ServerSentEvent("a\n b", "error", "1"),
        ServerSentEvent("c", "message", "1"),
        ServerSentEvent("d", "message", ""),
    ]
    assert decoder.retry_ms == 20


def test_an_event_that_the_end_cuts_is_dropped() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: whole\n\ndata: half\n") == [ServerSentEvent("whole")]


def test_half_a_byte_order_mark_waits() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"\xef") == []
    assert decoder.feed(b"\xbb\xbfdata: x\n\n") == [ServerSentEvent("x")]


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * 200, b"data: xxxxxxxx\n" * 20, b"data: " + b"y" * 200 + b"\n"]
)
def test_an_endless_event_is_refused(stream: bytes) -> None:
    with pytest.raises(EventTooLarge, match="100 bytes"):
        EventDecoder(largest=100).feed(stream)


def test_many_small_events_are_no_large_one() -> None:
    decoder = EventDecoder(largest=100)
    assert sum(len(decoder.feed(b"data: xxxxxxxx\n\n")) for _ in range(100)) == 100

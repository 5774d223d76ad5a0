"""Numbered events, and how a streamed answer is stored."""

from __future__ import annotations

from typing import Any

import msgspec
from headgate_dialects.decoded import AnswerMeta
from headgate_dialects.openai_chat import StreamEncoder
from headgate_gateway.streams import frames_of, join_runs, numbered, split_runs
from headgate_gateway.streams.frames import Frames
from headgate_plugin_api import Event, Finished, TextDelta, ToolCallDelta, Usage, UsageReport
from hypothesis import given
from hypothesis import strategies as st

deltas = st.builds(
    TextDelta,
    text=st.text(max_size=6),
    index=st.integers(0, 2),
    tokens=st.none() | st.integers(0, 3),
    reasoning=st.booleans(),
    extra=st.sampled_from([{}, {}, {}, {"logprobs": [1]}]),
)
others = st.one_of(
    st.builds(ToolCallDelta, index=st.integers(0, 1), arguments=st.text(max_size=3)),
    st.builds(Finished, reason=st.sampled_from(["stop", "length"]), index=st.integers(0, 2)),
    st.builds(UsageReport, usage=st.builds(Usage, input=st.integers(0, 9))),
)


@given(st.lists(deltas | others, max_size=30))
def test_what_is_stored_makes_the_same_stream(events: list[Event]) -> None:
    joined, runs = join_runs(events)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode((joined, runs)), type=tuple[tuple[Event, ...], Any])
    again = split_runs(stored[0], tuple(map(tuple, stored[1])))
    first, second = (StreamEncoder(AnswerMeta(id="r", model="m", created=1)) for _ in range(2))
    assert list(map(first.encode, events)) == list(map(second.encode, again))


def test_a_long_text_is_stored_in_little_more_than_its_bytes() -> None:
    events = [TextDelta(text="word ", tokens=1) for _ in range(5000)]
    assert len(msgspec.msgpack.encode(join_runs(events))) < 5000 * 6 + 100


@given(st.lists(st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), max_size=12), st.data())
def test_any_place_to_go_on_from(turns: list[list[str]], data: st.DataObject) -> None:
    """Whatever was dropped, what is left comes as the whole stream has it behind any number."""
    frames = Frames("req_1")
    whole = b""
    for turn in turns:
        written = b"".join(b"data: %s\n\n" % text.encode() for text in turn)
        whole += written
        assert frames.add(written) == len(numbered("req_1", whole)) - len(
            numbered("req_1", whole[: len(whole) - len(written)])
        )
    dropped = data.draw(st.integers(0, frames.next))
    gone = sum(frames.drop() for _ in range(dropped))
    assert frames.first == dropped
    assert frames.size + gone == len(numbered("req_1", whole))
    start = data.draw(st.integers(dropped, frames.next))
    assert frames.since(start) == numbered("req_1", whole, after=start - 1)
    assert frames.next == len(frames_of(whole))

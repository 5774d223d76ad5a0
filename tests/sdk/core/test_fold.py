"""Streams as bytes: any split, any replayed prefix, give the same answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from headgate._core.clock import SYSTEM
from headgate._core.request import Call, Session
from headgate._core.response_fold import ResponseFold
from headgate._core.retry import RetryPolicy
from headgate._core.stream import StreamState
from headgate._core.text_folds import ChatFold, CompletionFold
from headgate._core.tickets import Journal, Ticket
from headgate._transport.types import Received, Timeout
from headgate.errors import ConnectionFailed, ResponseShapeError, StreamInterrupted
from headgate.types.chat import ChatCompletionChunk
from headgate.types.completions import Completion
from headgate.types.responses import ResponseEvent
from hypothesis import given
from hypothesis import strategies as st


def state(fold: Any = None) -> StreamState[Any, Any]:
    session = Session(
        base_url="http://x",
        api_key="k",
        timeout=Timeout(),
        policy=RetryPolicy(),
        clock=SYSTEM,
        headers={},
        tags={},
    )
    call = Call(session, "POST", "/", body=b"{}", options={}, headers={"headgate-resumable": "9"})
    made: StreamState[Any, Any] = StreamState(
        call, fold or ChatFold(), Ticket(Journal(), (), "m", None, None), hide_usage=True
    )
    made.opened(Received(200, {"x-request-id": "req_1"}, b""))
    return made


def chunk(delta: dict[str, Any], index: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": "a", "model": "m", "created": 1, "choices": [{"index": index, "delta": delta, **more}]}


def sse(documents: list[dict[str, Any]], *, ids: bool = True) -> list[bytes]:
    return [
        (b"id: req_1:%d\n" % n if ids else b"") + b"data: " + json.dumps(document).encode() + b"\n\n"
        for n, document in enumerate(documents)
    ] + [(b"id: req_1:%d\n" % len(documents) if ids else b"") + b"data: [DONE]\n\n"]


DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, st.text(max_size=5)),
    st.builds(lambda text: {"reasoning_content": text}, st.text(max_size=5)),
    st.just({"role": "assistant"}),
    st.builds(
        lambda at, text: {
            "tool_calls": [{"index": at, "id": f"c{at}", "function": {"name": None, "arguments": text}}]
        },
        st.integers(0, 2),
        st.text(max_size=5),
    ),
)
DOCUMENTS = st.lists(st.builds(chunk, DELTAS, st.integers(0, 1)), min_size=1, max_size=12)


def fold(chunks: list[bytes]) -> str:
    made = state()
    for data in chunks:
        made.feed(data)
    assert made.done
    assert made.failure is None
    return str(made.final().model_dump_json())


@given(DOCUMENTS, st.lists(st.integers(0, 3000), max_size=10))
def test_any_split_of_the_bytes_gives_the_same_answer(documents: list[dict[str, Any]], cuts: list[int]) -> None:
    body = b"".join(sse(documents))
    places = sorted({min(cut, len(body)) for cut in cuts})
    pieces = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
    assert fold(pieces) == fold([body])


@given(DOCUMENTS, st.data())
def test_a_replayed_prefix_changes_nothing(documents: list[dict[str, Any]], data: st.DataObject) -> None:
    events = sse(documents)
    cut = data.draw(st.integers(1, len(events)))
    again = data.draw(st.integers(0, cut))
    made = state()
    for event in events[:cut]:
        made.feed(event)
    made.opened(Received(200, {"x-request-id": "req_1"}, b""))
    for event in events[again:]:
        made.feed(event)
    assert made.final().model_dump_json() == fold(events)


def test_what_a_chat_folds_to() -> None:
    made = ChatFold()
    for document in (
        chunk({"role": "assistant", "content": "he"}, logprobs={"content": [1]}),
        chunk({"content": "y"}, logprobs={"content": [2], "refusal": None}),
        chunk({"refusal": "no"}, 1, finish_reason="stop", logprobs=7),
        chunk({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}]}, 2),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}, {"index": 1}]}, 2),
        {"id": "a", "choices": [], "usage": {"prompt_tokens": 3, "cost": "0.1"}, "future": 1},
    ):
        made.add(ChatCompletionChunk.model_validate(document))
    answer = made.final()
    assert answer.text == "hey"
    assert answer.choices[0].logprobs == {"content": [1, 2], "refusal": None}
    assert answer.choices[1].message.refusal == "no"
    assert answer.choices[1].finish_reason == "stop"
    call = (answer.choices[2].message.tool_calls or [])[0]
    assert (call.id, call.function.name, call.function.arguments) == ("c", "f", "{}")
    assert answer.choices[2].message.content is None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert ChatFold().final().choices == []


def test_what_a_completion_folds_to() -> None:
    made = CompletionFold()
    for document in (
        {"id": "a", "choices": [{"index": 0, "text": "x", "logprobs": {"tokens": ["x"]}}]},
        {"choices": [{"index": 0, "text": "y", "finish_reason": "stop"}, {"index": 1, "text": "z"}]},
        {"choices": [], "usage": {"total_tokens": 4}},
    ):
        made.add(Completion.model_validate(document))
    answer = made.final()
    assert answer.text == "xy"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[1].text == "z"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4
    assert CompletionFold().final().text == ""


def test_what_a_response_folds_to() -> None:
    made = ResponseFold()
    made.add(ResponseEvent(type="response.created", response=None))
    made.add(ResponseEvent(type="response.output_text.delta", delta="a"))
    assert made.final().output_text == "a"
    assert made.usage is None
    made.add(ResponseEvent.model_validate({"type": "response.completed", "response": {"id": "r", "output": []}}))
    assert made.final().id == "r"
    assert ResponseFold().final().output == []


def test_an_error_after_the_first_event_interrupts() -> None:
    made = state()
    events = sse([chunk({"content": "a"})])
    shown = made.feed(
        events[0] + b'event: error\ndata: {"code": "upstream_error", "detail": "x"}\n\n' + events[1]
    )
    assert len(shown) == 1
    assert isinstance(made.failure, StreamInterrupted)
    assert (made.failure.partial, made.failure.code) == ("a", "upstream_error")
    assert not made.done


def test_a_chunk_of_another_shape_is_named() -> None:
    made = state()
    made.feed(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n')
    assert isinstance(made.failure, ResponseShapeError)
    assert made.failure.path == "choices[0].delta.content"


def test_an_endless_event_interrupts() -> None:
    made = state()
    made._decoder._largest = 10
    assert made.feed(b"data: xxxxxxxxxxxxxxxxx") == []
    assert isinstance(made.failure, StreamInterrupted)


@pytest.mark.parametrize(("events", "phase"), [([], "first_byte"), ([chunk({"content": "a"})], "body")])
def test_a_body_that_just_ends_is_broken(events: list[dict[str, Any]], phase: str) -> None:
    made = state()
    for event in sse(events)[:-1]:
        made.feed(event)
    with pytest.raises(ConnectionFailed) as caught:
        made.ended()
    assert caught.value.phase == phase


def test_events_without_a_number_are_new() -> None:
    made = state()
    document = json.dumps(chunk({"content": "a"})).encode()
    made.feed(b"id: odd\ndata: " + document + b"\n\n" + b"data: " + document + b"\n\ndata: [DONE]\n\n")
    made.ended()
    assert made.final().text == "aa"
    assert made.last_event_id == "odd"

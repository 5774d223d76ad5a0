"""What echo says, word by word."""

from __future__ import annotations

import pytest
from headgate_echo.speak import Answer, EchoSpeaker, Options, ask
from headgate_plugin_api import CompletionPayload, Finished, InferenceRequest, Sampling, TextDelta


def said(prompt: str, *stops: str, echo: bool = False, most: int | None = None, **options: int) -> list[str]:
    """The pieces of the one answer and why it ended; the bound is checked on the way."""
    payload = CompletionPayload(prompts=(prompt,), sampling=Sampling(stop=stops), echo=echo)
    request = InferenceRequest(id="r", model="m", payload=payload, max_output=most, options=options)
    speaker = EchoSpeaker(Options())
    speaker.admit(request)
    events = [event for output in speaker.step() for event in output.events]
    pieces = [event for event in events if isinstance(event, TextDelta)]
    (answer,) = ask(request, Options(), None)
    assert sum(piece.tokens or 0 for piece in pieces) == answer.count
    return [*(piece.text for piece in pieces), *(event.reason for event in events if isinstance(event, Finished))]


@pytest.mark.parametrize(
    ("prompt", "stops", "pieces"),
    [
        ("one two three", ["two"], ["one", " ", "stop"]),
        ("one two three", [" two"], ["one", "stop"]),
        ("one two three", ["o thr"], ["one", " tw", "stop"]),
        ("one two three", ["three", "ne"], ["o", "stop"]),
        ("one two three", ["one"], ["stop"]),
        ("one two three", ["four"], ["one", " two", " three", "stop"]),
        ("", ["one"], ["stop"]),
    ],
)
def test_a_stop_string_ends_the_answer(prompt: str, stops: list[str], pieces: list[str]) -> None:
    assert said(prompt, *stops) == pieces


def test_words_that_go_round_meet_a_stop_string_where_they_meet() -> None:
    assert said("a b", "b a", tokens=100) == ["a", " ", "stop"]
    assert said("a b", "b a", tokens=2) == ["a", " b", "stop"]


def test_the_limit_comes_before_a_stop_string_that_comes_later() -> None:
    assert said("one two three", "three", most=2) == ["one", " two", "length"]


def test_a_prompt_is_repeated_before_its_answer_and_is_no_output() -> None:
    assert said("one  two", echo=True) == ["one  two", " one", " two", "stop"]
    assert said("one two", "one", echo=True) == ["one two", "stop"]


def test_what_is_searched_is_no_longer_than_what_was_sent() -> None:
    payload = CompletionPayload(prompts=("w" * 1_000_000,), sampling=Sampling(stop=("x" * 1_000_000,)))
    request = InferenceRequest(id="r", model="m", payload=payload, options={"tokens": 65_536})
    assert ask(request, Options(), None) == [Answer(["w" * 1_000_000], 65_536, "stop")]

from __future__ import annotations

from typing import Any

import pytest
from headgate_torch.text import BROKEN, MAX_PENDING, Detokenizer, StopScanner
from hypothesis import given, settings
from hypothesis import strategies as st


def decode_bytes(tokens: Any) -> str:
    """A tokenizer with one token a byte."""
    return bytes(tokens).decode(errors="replace")


def pieces(detokenizer: Detokenizer, tokens: Any) -> list[str]:
    return [*(detokenizer.add(token) for token in tokens), detokenizer.end()]


@given(text=st.text(max_size=60), before=st.text(max_size=10))
def test_pieces_are_whole_characters_and_add_up(text: str, before: str) -> None:
    given_out = pieces(Detokenizer(decode_bytes, before.encode()), text.encode())
    assert "".join(given_out) == text
    if BROKEN not in text:
        assert all(BROKEN not in piece for piece in given_out)


def test_a_character_is_held_until_its_last_byte() -> None:
    detokenizer = Detokenizer(decode_bytes, b"")
    assert [detokenizer.add(byte) for byte in "a€😀".encode()] == ["a", "", "", "€", "", "", "", "😀"]


def test_bytes_that_never_become_a_character_are_given_up_in_the_end() -> None:
    detokenizer = Detokenizer(decode_bytes, b"")
    out = [detokenizer.add(0xFF) for _ in range(MAX_PENDING)]
    assert out[:-1] == [""] * (MAX_PENDING - 1)
    assert out[-1] == BROKEN * MAX_PENDING


def test_an_open_character_at_the_end_is_replaced() -> None:
    assert pieces(Detokenizer(decode_bytes, b""), "é".encode()[:1]) == ["", BROKEN]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_tokens_of_a_real_vocabulary_stream_to_their_whole_text(tokenizer: Any, data: st.DataObject) -> None:
    text = data.draw(st.text(max_size=40))
    prompt = tokenizer("In the beginning").input_ids
    tokens = tokenizer(text, add_special_tokens=False).input_ids

    def decode(ids: Any) -> str:
        out: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return out

    assert "".join(pieces(Detokenizer(decode, prompt), tokens)) == text


@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_stops_are_found_across_any_borders(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    scanner, out, stopped = StopScanner(stops), "", False
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece, stopped = scanner.add(text[start:end])
        out += piece
        if stopped:
            break
    else:
        out += scanner.end()
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    # Which of two overlapping stop strings is seen first may depend on the borders; what may go out does not.
    assert stopped == bool(places)
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    if len(stops) == 1 or not places:
        assert out == text[: min(places, default=len(text))]


@pytest.mark.parametrize(("text", "now"), [("so be it", "so be it"), ("so be it E", "so be it "), ("EN", "")])
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, now: str) -> None:
    scanner = StopScanner(["END"])
    assert scanner.add(text) == (now, False)
    assert now + scanner.end() == text

"""Keys have a form whose checksum anyone can test, and a digest that needs the pepper."""

import random

from headgate_gateway.domain.keys import digest, generate_key, well_formed
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers())
def test_generated_keys_are_well_formed(seed: int) -> None:
    key = generate_key(random.Random(seed))
    assert well_formed(key)
    assert len(key) == 3 + 30 + 1 + 6


@given(st.integers(), st.integers(3, 32), st.characters(codec="ascii"))
def test_one_changed_character_breaks_the_checksum(seed: int, place: int, other: str) -> None:
    key = generate_key(random.Random(seed))
    changed = key[:place] + other + key[place + 1 :]
    assert well_formed(changed) == (changed == key)


@given(st.text())
def test_any_text_is_refused_quietly(text: str) -> None:
    assert not well_formed(text) or text.startswith("hg_")
    assert len(digest(text, b"pepper")) == 32


def test_the_digest_depends_on_the_pepper() -> None:
    assert digest("hg_a", b"one") != digest("hg_a", b"two")

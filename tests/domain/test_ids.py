"""Ids sort by time and are safe in URLs and file names."""

import random
import re

from headgate_gateway.domain.ids import IdSource, new_id


class At:
    def __init__(self, us: int) -> None:
        self.us = us

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


def test_later_ids_sort_later() -> None:
    clock, noise = At(1_795_000_000_000_000), random.Random(1)
    ids = []
    for _ in range(500):
        ids.append(new_id("req", clock, noise))
        clock.us += 1000
    assert ids == sorted(ids)
    assert all(re.fullmatch(r"req_[0-9a-hjkmnp-tv-z]{26}", one) for one in ids)


def value(id_: str) -> int:
    return sum("0123456789abcdefghjkmnpqrstvwxyz".index(digit) << 5 * n for n, digit in enumerate(id_[:3:-1]))


def test_an_id_says_when_it_was_made_and_all_else_is_noise() -> None:
    source = IdSource(At(1_795_000_000_123_000), random.Random(3))
    numbers = [value(source.request()) for _ in range(1_000)]
    assert {number >> 80 for number in numbers} == {1_795_000_000_123}
    once, always = 0, -1
    for number in numbers:
        once, always = once | number, always & number
    assert (once ^ always).bit_count() == 74


def test_ids_are_version_7_and_distinct() -> None:
    source = IdSource(At(1_795_000_000_000_000), random.Random(2))
    ids = {source.request() for _ in range(10_000)}
    assert len(ids) == 10_000
    number = value(next(iter(ids)))
    assert number >> 76 & 0xF == 7
    assert number >> 62 & 0b11 == 0b10
    assert source.key().startswith("key_")
    assert source.project().startswith("prj_")

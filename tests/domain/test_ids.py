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


def test_ids_are_version_7_and_distinct() -> None:
    source = IdSource(At(1_795_000_000_000_000), random.Random(2))
    ids = {source.request() for _ in range(10_000)}
    assert len(ids) == 10_000
    number = 0
    for digit in next(iter(ids))[4:]:
        number = number * 32 + "0123456789abcdefghjkmnpqrstvwxyz".index(digit)
    assert number >> 76 & 0xF == 7
    assert number >> 62 & 0b11 == 0b10
    assert source.key().startswith("key_")
    assert source.project().startswith("prj_")

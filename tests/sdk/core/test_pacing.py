"""Pacing: against a gateway that counts exactly, no request is refused, and none waits longer than it has to."""

from __future__ import annotations

import pytest
from headgate._core.pacing import Pacer, seconds
from hypothesis import given
from hypothesis import strategies as st


class Bucket:
    """The gateway's limit: `limit` at once, refilled evenly over a minute."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free = float(limit)
        self.at = 0.0

    def admit(self, now: float) -> dict[str, str] | None:
        self.free = min(self.limit, self.free + (now - self.at) * self.limit / 60)
        self.at = now
        if self.free < 1 - 1e-6:
            return None
        self.free -= 1
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(int(self.free)),
            "x-ratelimit-reset-requests": f"{(self.limit - self.free) * 60_000 / self.limit:.0f}ms",
        }


@given(st.integers(1, 40), st.lists(st.floats(0, 5), max_size=80))
def test_nothing_is_refused_and_nothing_waits_for_nothing(limit: int, gaps: list[float]) -> None:
    bucket, pacer, now = Bucket(limit), Pacer(), 0.0
    for gap in gaps:
        now += gap
        wait = pacer.take(now, 1e9)
        assert wait <= 2 * 60 / limit + 0.01
        now += wait + 0.002
        headers = bucket.admit(now)
        assert headers is not None
        pacer.learn(headers, now)


def test_those_in_flight_are_counted() -> None:
    pacer = Pacer()
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "58s",
    }
    pacer.learn(headers, 0.0)
    assert [pacer.take(0.0, 1e9) for _ in range(4)] == [0, 0, 1, 2]
    # An answer that left before they were counted changes nothing.
    pacer.learn(headers, 0.0)
    assert pacer.take(0.0, 1e9) == 3
    # Who cannot wait so long goes at once and hears it from the gateway.
    assert pacer.take(0.0, 4.0) == 0.0
    assert pacer.take(0.0, 1e9) == 4
    assert pacer.take(1000.0, 1e9) == 0.0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-limit-requests": "5", "x-ratelimit-remaining-requests": "5"},
        {
            "x-ratelimit-limit-requests": "5",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "soon",
        },
        {
            "x-ratelimit-limit-requests": "many",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1s",
        },
    ],
)
def test_what_says_nothing_teaches_nothing(headers: dict[str, str]) -> None:
    pacer = Pacer()
    pacer.learn(headers, 0.0)
    assert [pacer.take(0.0, 1.0) for _ in range(100)] == [0.0] * 100


def test_durations() -> None:
    assert [seconds(text) for text in ("12ms", "1.5s", "6m0s", "1h2m", "", None, "x", "5", "1s?")] == [
        0.012, 1.5, 360.0, 3720.0, None, None, None, None, None,
    ]  # fmt: skip

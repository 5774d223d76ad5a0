from __future__ import annotations

from random import Random

from headgate_gateway.backoff import Backoff


class Always(Random):
    """Randomness that always comes out the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def random(self) -> float:
        return self._value


def test_delays_double_up_to_the_ceiling() -> None:
    backoff = Backoff(Always(1.0))
    delays = [backoff.delay(0.0) for _ in range(12)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 30.0
    assert backoff.count == 12


def test_jitter_takes_away_at_most_half() -> None:
    assert Backoff(Always(0.0)).delay(0.0) == 0.05
    drawn = Backoff(Random(7))
    assert all(0.05 * 2**n <= drawn.delay(0.0) <= 0.1 * 2**n for n in range(8))


def test_a_child_that_lived_long_starts_over() -> None:
    backoff = Backoff(Always(1.0))
    for _ in range(6):
        backoff.delay(1.0)
    assert backoff.delay(60.0) == 0.1


def test_weeks_of_failures_do_not_overflow() -> None:
    backoff = Backoff(Always(1.0))
    assert [backoff.delay(0.0) for _ in range(5000)][-1] == 30.0

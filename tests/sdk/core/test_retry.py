"""The retry policy: pauses stay under their caps, and a call ends by its deadline whatever goes wrong."""

from __future__ import annotations

import pytest
from headgate._core.retry import RetryPolicy
from headgate.errors import (
    BudgetExceeded,
    ConnectionFailed,
    Failure,
    HeadgateError,
    ServerError,
    TimedOut,
)
from headgate.testing import Disconnect, FakeGateway, Fault, Refuse, Stall
from headgate.types import Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

FAULTS = st.one_of(
    st.builds(
        Refuse,
        st.sampled_from([429, 500, 502, 503, 504]),
        st.none(),
        st.one_of(st.none(), st.floats(0, 200)),
    ),
    st.builds(Disconnect, st.sampled_from(["connect", "first_byte"])),
    st.just(Stall()),
)


@given(
    st.integers(1, 200),
    st.floats(0, 100),
    st.floats(0, 100),
    st.floats(0, 1, exclude_max=True),
)
def test_a_backoff_is_never_over_its_cap(attempt: int, base: float, cap: float, roll: float) -> None:
    wait = RetryPolicy(base=base, cap=cap).wait(attempt, ServerErrorLike(), roll)
    assert 0 <= wait <= cap


@given(st.integers(1, 20), st.floats(0, 1000), st.floats(0, 1000))
def test_no_pause_crosses_the_deadline(attempt: int, wait: float, remaining: float) -> None:
    policy = RetryPolicy(max_retries=5)
    if not policy.stop(attempt, wait, remaining):
        assert wait < remaining
        assert wait <= policy.longest_pace
        assert attempt <= policy.max_retries


@settings(max_examples=60, deadline=None)
@given(st.lists(FAULTS, max_size=8), st.floats(0.5, 300), st.integers(0, 6))
def test_a_call_ends_by_its_deadline(faults: list[Fault], deadline: float, retries: int) -> None:
    gateway = FakeGateway()
    gateway.script(*faults)
    client = gateway.client(max_retries=retries, timeout=Timeout(connect=3, first_byte=20, idle=10))
    try:
        client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "x"}], deadline=deadline
        )
    except HeadgateError as error:
        assert len(error.attempts) <= retries + 1
        assert error.attempts == tuple(error.attempts)
    assert gateway.clock.now <= deadline + 1e-6
    assert len(gateway.seen) <= retries + 1
    assert len({seen.headers["idempotency-key"] for seen in gateway.seen}) <= 1


def test_a_servers_pace_wins_over_the_backoff() -> None:
    error = ServerErrorLike()
    error.retry_after = 3.5
    assert RetryPolicy().wait(1, error, 0.9) == 3.5


@pytest.mark.parametrize(
    ("error", "replays", "expected"),
    [
        (ConnectionFailed("x", phase="connect"), False, True),
        (ConnectionFailed("x", phase="first_byte"), True, True),
        (ConnectionFailed("x", phase="first_byte"), False, False),
        (TimedOut("x", clock="pool"), False, True),
        (TimedOut("x", clock="deadline"), True, False),
        (BudgetExceeded("x"), True, False),
        (ValueError("x"), True, False),
    ],
)
def test_the_class_of_a_failure_decides(error: BaseException, replays: bool, expected: bool) -> None:
    assert RetryPolicy().verdict(error, replays=replays) is expected


def test_the_servers_word_wins_over_the_class() -> None:
    error = ServerErrorLike()
    error.should_retry = False
    assert not RetryPolicy().verdict(error, replays=True)
    error.should_retry = True
    assert RetryPolicy().verdict(error, replays=False)


@pytest.mark.parametrize("field", ["max_retries", "base", "cap", "longest_pace"])
def test_negative_numbers_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match="no negative"):
        RetryPolicy(**{field: -1})


class ServerErrorLike(ServerError):
    """A server error without an answer."""

    failure = Failure.OUTCOME_UNKNOWN

    def __init__(self) -> None:
        super().__init__("x", status=500, problem={}, headers={})

"""Requests and tokens per minute, requests in flight: exact, with refunds, on every level."""

import tempfile
from pathlib import Path
from typing import Any

from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = 1_000_000


def test_requests_per_minute_with_an_exact_wait(bench: Any) -> None:
    key = bench.key(rpm=2)
    replies = [bench.admit(key) for _ in range(3)]
    assert [type(r) for r in replies] == [wire.Grant, wire.Grant, wire.Denied]
    refused = replies[2].refused
    assert (refused.code, refused.scope, refused.retry_after_ms) == (
        "rate_limit_exceeded",
        "key:requests",
        30_000,
    )
    bench.clock.us += 30 * SECOND - 1
    assert isinstance(bench.admit(key), wire.Denied)
    bench.clock.us += 1
    bench.restart()
    assert isinstance(bench.admit(key), wire.Grant)
    assert isinstance(bench.admit(key), wire.Denied)


def test_unused_tokens_come_back(bench: Any) -> None:
    key = bench.key(tpm=1000)
    granted = bench.admit(key, 900, prompt=100)
    (state,) = [s for s in granted.limits if s.kind == "tokens"]
    assert (state.limit, state.remaining, state.reset_ms) == (1000, 0, 60_000)
    assert bench.admit(key, 1).refused.scope == "key:tokens"
    bench.settle(granted.request_id, 100, prompt=100)
    assert isinstance(bench.admit(key, 800), wire.Grant)
    assert isinstance(bench.admit(key, 1), wire.Denied)


def test_limits_of_any_size_survive_a_restart(bench: Any) -> None:
    key = bench.key(rpm=1_000_000_000, tpm=1_000_000_000)
    granted = bench.admit(key, 1_000_000_000)
    assert isinstance(granted, wire.Grant)
    assert isinstance(bench.admit(key, 1), wire.Denied)
    bench.restart()
    bench.settle(granted.request_id, 1)
    assert isinstance(bench.admit(key, 999_999_999), wire.Grant)
    assert isinstance(bench.admit(key, 1), wire.Denied)


def test_a_request_above_the_limit_never_fits(bench: Any) -> None:
    refused = bench.admit(bench.key(tpm=100), 101).refused
    assert refused.code == "rate_limit_exceeded"
    assert refused.retry_after_ms is None


def test_concurrency_on_every_level(bench: Any) -> None:
    one, two = bench.key(), bench.key()
    bench.do(c.SetLimit(account="p", kind="concurrency", amount=1))
    granted = bench.admit(one)
    refused = bench.admit(two).refused
    assert (refused.scope, refused.limit, refused.held) == ("project:concurrency", 1, 1)
    bench.restart()
    assert isinstance(bench.admit(two), wire.Denied)
    bench.settle(granted.request_id)
    assert isinstance(bench.admit(two), wire.Grant)


def test_a_refused_request_takes_nothing_from_any_limit(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000005/total", rpm=1)
    assert bench.admit(key, 10).refused.code == "request_exceeds_budget"
    assert isinstance(bench.admit(key, 5), wire.Grant)


ACCOUNTS = ("key", "p", "default")
limits = st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(["requests", "tokens"]), st.integers(1, 40))
past = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20 * SECOND)), max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(limits, min_size=1, max_size=5), past, st.integers(0, 20), st.integers(0, 20))
def test_retry_after_is_when_the_same_request_fits_and_not_before(
    bench_class: Any, set_: list[Any], past: list[tuple[int, int, int]], output: int, prompt: int
) -> None:
    """Whatever limits there are on whichever levels, and whatever was asked, settled and given back before."""
    with tempfile.TemporaryDirectory() as folder:
        bench = bench_class(Path(folder))
        key = bench.key()
        for account, kind, amount in set_:
            bench.do(c.SetLimit(account=key if account == "key" else account, kind=kind, amount=amount))
        for asked, used, pause in past:
            if isinstance(granted := bench.admit(key, asked), wire.Grant):
                bench.settle(granted.request_id, used)
            bench.clock.us += pause
        refused = bench.admit(key, output, prompt=prompt)
        if isinstance(refused, wire.Denied):
            wait = refused.refused.retry_after_ms
            if wait is None:
                bench.clock.us += 10**12
                assert isinstance(bench.admit(key, output, prompt=prompt), wire.Denied)
            else:
                bench.clock.us += (wait - 1) * 1000
                assert isinstance(bench.admit(key, output, prompt=prompt), wire.Denied)
                bench.clock.us += 1000
                assert isinstance(bench.admit(key, output, prompt=prompt), wire.Grant)
        bench.core.close()


def test_a_clock_that_was_wrong_for_a_moment_holds_up_nobody_for_long(bench: Any) -> None:
    """What was committed two hours ahead makes time go half as fast until then, not stand still."""
    elapsed = 0.0
    bench.clock.monotonic = lambda: elapsed
    bench.restart()
    key, right = bench.key(rpm=60), bench.clock.us
    bench.clock.us += 7200 * SECOND
    assert isinstance(bench.admit(key), wire.Grant)
    bench.clock.us = right
    while isinstance(bench.admit(key), wire.Grant):
        pass
    ahead = bench.core.state.head.at_us
    for _ in range(2):
        elapsed += 10
        bench.clock.us += 10 * SECOND
        replies = [bench.admit(key) for _ in range(6)]
        assert [type(reply) for reply in replies] == [wire.Grant] * 5 + [wire.Denied]
        bench.restart()
    assert bench.core.state.head.at_us == ahead + 10 * SECOND
    elapsed += 14_400
    bench.clock.us += 14_400 * SECOND
    assert isinstance(bench.admit(key), wire.Grant)
    assert bench.core.state.head.at_us == bench.clock.us


def test_tokens_beyond_what_was_taken_are_taken_afterwards(bench: Any) -> None:
    key = bench.key(tpm=100)
    granted = bench.admit(key, 10)
    bench.settle(granted.request_id, 60)
    refused = bench.admit(key, 50).refused
    assert refused.retry_after_ms == 6_000  # ten of them, at a hundred a minute
    bench.clock.us += 6 * SECOND
    bench.restart()
    assert isinstance(bench.admit(key, 50), wire.Grant)
    assert isinstance(bench.admit(key, 1), wire.Denied)


def test_tokens_beyond_what_was_taken_count_from_when_they_are_known(bench: Any) -> None:
    key = bench.key(tpm=100)
    granted = bench.admit(key, 10)
    bench.clock.us += 3600 * SECOND
    bench.settle(granted.request_id, 60)
    assert bench.admit(key, 51).refused.scope == "key:tokens"
    assert isinstance(bench.admit(key, 50), wire.Grant)


def test_a_limit_that_was_lifted_or_changed_meanwhile_gets_nothing_back(bench: Any) -> None:
    key = bench.key(rpm=2, tpm=100)
    first, second = (bench.admit(key, 50).request_id for _ in range(2))
    for kind in ("requests", "tokens"):
        bench.do(c.SetLimit(account=key, kind=kind, amount=None))
    assert isinstance(bench.settle(first, 1), wire.Recorded)
    bench.clock.us += 1
    bench.do(c.SetLimit(account=key, kind="requests", amount=2))
    bench.do(c.SetLimit(account=key, kind="tokens", amount=100))
    assert isinstance(bench.admit(key, 100), wire.Grant)
    bench.run(wire.Void(1, second))
    assert bench.admit(key, 1).refused.scope == "key:tokens"
    assert isinstance(bench.admit(key, 0), wire.Grant)
    assert bench.admit(key, 0).refused.scope == "key:requests"


def test_what_was_taken_under_another_limit_in_between_is_not_measured_in_this_one(bench: Any) -> None:
    key = bench.key(tpm=60)
    first = bench.admit(key, 60).request_id
    bench.clock.us += 30 * SECOND
    bench.do(c.SetLimit(account=key, kind="tokens", amount=120))
    assert isinstance(bench.admit(key, 60), wire.Grant)
    bench.do(c.SetLimit(account=key, kind="tokens", amount=60))
    bench.clock.us += SECOND
    bench.run(wire.Void(1, first))
    assert bench.admit(key, 32).refused.scope == "key:tokens"  # without the first 31 would be left

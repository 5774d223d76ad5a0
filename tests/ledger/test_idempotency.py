"""Idempotency claims end stored, released or spent; at most one billed record a claim."""

from typing import Any

from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire

CLAIM: dict[str, Any] = {"claim": "k1", "fingerprint": b"f" * 32}
SECOND = 1_000_000


def test_an_answer_is_replayed_free_of_charge(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/total")
    first = bench.admit(key, 10, **CLAIM)
    running = bench.admit(key, 10, **CLAIM).refused
    assert (running.code, running.record_id) == ("idempotency_in_progress", first.request_id)
    bench.settle(first.request_id, 10, answer=b"the answer")
    bench.restart()
    replay = bench.admit(key, 10, **CLAIM)
    assert (replay.request_id, replay.answer, replay.cost) == (first.request_id, b"the answer", 10)
    assert bench.budgets(key)["total"].spent == 10
    assert bench.admit(key, 10, claim="k1", fingerprint=b"g" * 32).refused.code == "idempotency_mismatch"


def test_a_waived_request_releases_its_key(bench: Any) -> None:
    bench.price()
    key = bench.key()
    first = bench.admit(key, 10, **CLAIM)
    bench.settle(first.request_id, billed=False, outcome="upstream_error")
    second = bench.admit(key, 10, **CLAIM)
    assert second.retry_of == first.request_id
    bench.settle(second.request_id, 10, answer=b"x")
    assert isinstance(bench.admit(key, 10, **CLAIM), wire.Replayed)


def test_an_answer_that_is_not_kept_is_spent(bench: Any) -> None:
    bench.price()
    key = bench.key()
    first = bench.admit(key, 10, **CLAIM)
    bench.settle(first.request_id, 10, answer=b"x" * (64 * 1024 + 1))
    refused = bench.admit(key, 10, **CLAIM).refused
    assert (refused.code, refused.record_id) == ("idempotency_consumed", first.request_id)


def test_answers_last_ten_minutes_and_claims_a_day(bench: Any) -> None:
    bench.price()
    key = bench.key()
    bench.settle(bench.admit(key, 10, **CLAIM).request_id, 10, answer=b"x")
    bench.clock.us += 601 * SECOND
    assert bench.admit(key, 10, **CLAIM).refused.code == "idempotency_consumed"
    bench.clock.us += 24 * 3600 * SECOND
    assert isinstance(bench.admit(key, 10, **CLAIM), wire.Grant)


def test_claims_of_projects_are_apart(bench: Any) -> None:
    one, two = bench.key(project="a"), bench.key(project="b")
    assert isinstance(bench.admit(one, **CLAIM), wire.Grant)
    assert isinstance(bench.admit(two, **CLAIM), wire.Grant)


def test_pruning_keeps_what_is_open(bench: Any) -> None:
    key = bench.key()
    bench.settle(bench.admit(key, 10, **CLAIM).request_id, 10, answer=b"x")
    bench.admit(key, 10, claim="open", fingerprint=b"f")
    bench.clock.us += 25 * 3600 * SECOND
    assert bench.core.prune(100) == 2
    assert bench.core.prune(100) == 0


def test_what_a_key_may_is_asked_before_an_answer_is_replayed(bench: Any) -> None:
    bench.price()
    bench.settle(bench.admit(bench.key(), 10, **CLAIM).request_id, 10, answer=b"x")
    narrow, revoked, blind = (
        bench.key(models=frozenset({"n"})),
        bench.key(),
        bench.key(scopes=frozenset({"usage"})),
    )
    bench.do(c.RevokeKey(id=revoked))
    assert bench.admit(narrow, 10, **CLAIM).refused.code == "permission_denied"
    assert bench.admit(blind, 10, **CLAIM).refused.code == "permission_denied"
    assert bench.admit(revoked, 10, **CLAIM).refused.code == "invalid_api_key"
    assert isinstance(bench.admit(bench.key(), 10, **CLAIM), wire.Replayed)


def test_a_clock_that_jumps_ahead_frees_no_key_whose_request_still_runs(bench: Any) -> None:
    bench.price()
    key = bench.key()
    first = bench.admit(key, 10, **CLAIM)
    bench.clock.us += 48 * 3600 * SECOND  # a machine that slept, or whose clock was set
    assert bench.admit(key, 10, **CLAIM).refused.code == "idempotency_in_progress"
    asked = bench.core.trace(wire.Trace(1, key, "m", CLAIM["claim"], CLAIM["fingerprint"]))
    assert (asked.traced.state, asked.traced.request_id) == ("open", first.request_id)
    bench.settle(first.request_id, 10)
    assert isinstance(bench.admit(key, 10, **CLAIM), wire.Grant)  # its day is over

"""What became of the request behind an idempotency key, asked without admitting anything."""

from __future__ import annotations

from typing import Any

from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire

CLAIM: dict[str, Any] = {"claim": "k1", "fingerprint": b"f" * 32}


def trace(bench: Any, key: str, **more: Any) -> Any:
    reply = bench.core.trace(wire.Trace(**{"n": 9, "key_id": key, "model": "m", **CLAIM, **more}))
    assert reply.n == 9
    return reply.traced if isinstance(reply, wire.Trail) else reply.refused


def test_from_unknown_to_stored(bench: Any) -> None:
    bench.price()
    key = bench.key("1/total")
    assert trace(bench, key).state == "unknown"
    assert bench.core.state.holds == {}, "asking admits nothing"
    request_id = bench.admit(key, 10, **CLAIM).request_id
    traced = trace(bench, key)
    assert (traced.state, traced.request_id, traced.worker) == ("open", request_id, 0)
    bench.restart()
    assert trace(bench, key) == traced
    bench.settle(request_id, 10, answer=b"the answer")
    traced = trace(bench, key)
    assert (traced.state, traced.request_id, traced.worker) == ("stored", request_id, None)
    assert (traced.answer, traced.cost) == (b"the answer", 10)
    assert traced.price is not None
    bench.clock.us += 601 * 1_000_000
    assert (trace(bench, key).state, trace(bench, key).answer) == ("stored", None)
    bench.clock.us += 24 * 3600 * 1_000_000
    assert trace(bench, key).state == "unknown"


def test_spent_and_released(bench: Any) -> None:
    bench.price()
    key = bench.key()
    for claim, ending, told in (
        ("spent", {"output": 7, "outcome": "gateway_crash"}, ("spent", 7)),
        ("waived", {"billed": False, "outcome": "client_gone"}, ("released", 0)),
    ):
        request_id = bench.admit(key, 10, claim=claim, fingerprint=b"f").request_id
        bench.settle(request_id, **ending)
        traced = trace(bench, key, claim=claim, fingerprint=b"f")
        assert ((traced.state, traced.cost), traced.request_id) == (told, request_id)
    voided = bench.admit(key, 10, **CLAIM).request_id
    bench.run(wire.Void(1, voided))
    assert (trace(bench, key).state, trace(bench, key).cost) == ("released", 0)


def test_who_asks_is_checked(bench: Any) -> None:
    key, sibling = bench.key(), bench.key()
    stranger, narrow = bench.key(project="strangers"), bench.key(models=frozenset({"other"}))
    powerless = bench.key(scopes=frozenset({"usage"}))
    request_id = bench.admit(key, 10, **CLAIM).request_id
    assert trace(bench, sibling).request_id == request_id, "claims are the project's"
    assert trace(bench, stranger).state == "unknown"
    assert trace(bench, narrow).code == trace(bench, powerless).code == "permission_denied"
    mismatch = trace(bench, key, fingerprint=b"g" * 32)
    assert (mismatch.code, mismatch.record_id) == ("idempotency_mismatch", request_id)
    bench.do(c.RevokeKey(id=key))
    assert trace(bench, key).code == trace(bench, "key_nobody").code == "invalid_api_key"

"""What a dead worker's requests end as."""

import dataclasses
from typing import Any

import pytest
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.flight import ADMITTED, DISPATCHED, ENDED, ZERO, Flight
from headgate_gateway.ledger.recovery import endings

SOME = (5, 0, 0, 3, 0, 0, 0, 1, 0)


def flight(state: int, usage: tuple[int, ...] = ZERO, billed: bool = True) -> Flight:
    return Flight("req_1", state, "client_gone", "upstream", billed, usage)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "power_lost", "ending"),
    [
        (None, False, None),
        (flight(ADMITTED), False, None),
        (flight(DISPATCHED), False, ("gateway_crash", ZERO, False, "slot")),
        (flight(DISPATCHED, SOME), False, ("gateway_crash", SOME, True, "slot")),
        (flight(ENDED, SOME), False, ("client_gone", SOME, True, "upstream")),
        (flight(ENDED, SOME, billed=False), False, ("client_gone", SOME, False, "upstream")),
        (None, True, ("lost_power", ZERO, False, "slot")),
        (flight(ADMITTED), True, ("lost_power", ZERO, False, "slot")),
        (flight(DISPATCHED, SOME), True, ("lost_power", SOME, True, "slot")),
        (flight(ENDED, SOME), True, ("client_gone", SOME, True, "upstream")),
    ],
)
def test_crash_table(found: Flight | None, power_lost: bool, ending: tuple[object, ...] | None) -> None:
    (op,) = endings(["req_1"], [found] if found else [], power_lost=power_lost)
    if ending is None:
        assert op == wire.Void(0, "req_1")
    else:
        assert isinstance(op, wire.Settle)
        assert (op.outcome, op.usage, op.billed, op.source) == ending


def test_slots_of_requests_that_have_ended_are_passed_over() -> None:
    assert endings([], [flight(DISPATCHED, SOME)], power_lost=False) == []


def recover_waived(bench: Any) -> None:
    """Every row of the table, of a model whose answers nobody pays for when they break off."""
    bench.price()
    key = bench.key("0.000000100/total")
    rows: list[tuple[Flight | None, bool, int]] = [
        (None, False, 0),
        (flight(ADMITTED), False, 0),
        (flight(DISPATCHED), False, 0),
        (flight(DISPATCHED, SOME), False, 0),
        (flight(ENDED, SOME), False, 3),
        (flight(ENDED, SOME, billed=False), False, 0),
        (None, True, 0),
        (flight(DISPATCHED, SOME), True, 0),
        (flight(ENDED, SOME), True, 3),
    ]
    for n, (found, power_lost, cost) in enumerate(rows):
        claim = {"claim": str(n), "fingerprint": b"f"}
        granted = bench.admit(key, waive=True, **claim)
        assert isinstance(granted, wire.Grant)
        flights = [dataclasses.replace(found, request_id=granted.request_id)] if found else []
        (reply,) = bench.run(*endings([granted.request_id], flights, power_lost=power_lost))
        assert isinstance(reply, wire.Recorded)
        assert reply.cost == cost, (found, power_lost)
        again = bench.admit(key, **claim)
        if cost:
            assert again.refused.code == "idempotency_consumed"
        else:  # who paid nothing may ask again
            assert again.retry_of == granted.request_id
            bench.settle(again.request_id, 0)
    assert bench.budgets(key)["total"].spent == 6


def test_with_the_policy_waive_only_what_had_ended_is_paid(bench: Any) -> None:
    recover_waived(bench)

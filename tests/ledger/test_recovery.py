"""What a dead worker's requests end as."""

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

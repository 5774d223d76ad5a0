"""What becomes of requests whose worker died: each ends as its flight file says. May import flight, wire, book.

| slot says | the request ends as |
|---|---|
| nothing, or admission asked for | void: nothing was dispatched |
| dispatched, nothing delivered | record `gateway_crash`, customer pays 0 |
| dispatched, counts | record `gateway_crash`, customer pays the counts; 0 where the hold says `waive` |
| settlement asked for | the record that was asked for |
| another boot of the machine | the same with `lost_power`, and a missing slot proves nothing: record, 0 |
"""

from __future__ import annotations

from collections.abc import Iterable

from headgate_gateway.ledger import wire
from headgate_gateway.ledger.flight import ADMITTED, ENDED, ZERO, Flight


def endings(open_requests: Iterable[str], flights: Iterable[Flight], *, power_lost: bool) -> list[wire.Op]:
    """How each open request of a dead worker ends.

    Args:
        open_requests: Holds of that life of the worker.
        flights: What its file says.
        power_lost: Whether the machine was booted since: then counts are lower bounds.
    """
    by_id = {flight.request_id: flight for flight in flights}
    return [_ending(request_id, by_id.get(request_id), power_lost) for request_id in open_requests]


def are_over(replies: Iterable[wire.Reply]) -> bool:
    """Whether all of them have ended; while one has not, the file alone says how it stands, and is kept."""
    return not any(isinstance(reply, wire.Failed) and reply.code != "unknown_request" for reply in replies)


def _ending(request_id: str, flight: Flight | None, power_lost: bool) -> wire.Op:
    if flight is None or flight.state == ADMITTED:
        if not power_lost:
            return wire.Void(0, request_id)
        return wire.Settle(0, request_id, ZERO, "slot", "lost_power", "", billed=False)
    if flight.state == ENDED:
        return wire.Settle(
            0, request_id, flight.usage, flight.source, flight.outcome, "", billed=flight.billed
        )  # fmt: skip
    return wire.Settle(
        0, request_id, flight.usage, "slot", "lost_power" if power_lost else "gateway_crash", "",
        billed=any(flight.usage),
    )  # fmt: skip

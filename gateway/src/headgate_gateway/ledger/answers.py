"""What the ledger says on the wire, in the words of the domain. May import domain and wire."""

from __future__ import annotations

from typing import Any

from headgate_gateway.domain.admission import Granted, Refused, Replay, Traced
from headgate_gateway.domain.commands import Rejected
from headgate_gateway.ledger import wire


def admitted(reply: wire.Reply) -> Granted | Replay | Refused:
    """The answer to an admission."""
    if isinstance(reply, wire.Grant):
        return Granted(
            request_id=reply.request_id, output=reply.output, held=reply.held, price=reply.price,
            limits=reply.limits, retry_of=reply.retry_of, over=reply.over,
        )  # fmt: skip
    if isinstance(reply, wire.Replayed):
        return Replay(request_id=reply.request_id, answer=reply.answer, cost=reply.cost, price=reply.price)
    if isinstance(reply, wire.Denied):
        return reply.refused
    return unavailable(reply.message if isinstance(reply, wire.Failed) else "the ledger gave no answer")


def told(reply: wire.FromLedger) -> Traced | Refused:
    """The answer to a trace."""
    if isinstance(reply, wire.Trail):
        return reply.traced
    if isinstance(reply, wire.Denied):
        return reply.refused
    return unavailable(reply.message if isinstance(reply, wire.Failed) else "the ledger gave no answer")


def rejected(reply: Any) -> Rejected:
    """A command that was not carried out."""
    faulty = isinstance(reply, wire.Failed) and reply.code == "invalid"
    message = getattr(reply, "message", "the ledger refused the command")
    return Rejected(code="invalid" if faulty else "unavailable", message=message)


def unavailable(message: str = "the ledger does not answer") -> Refused:
    """There is no answer to be had."""
    return Refused(code="ledger_unavailable", message=message, retry_after_ms=1000)


def overloaded(message: str) -> Refused:
    """There is too much of something."""
    return Refused(code="overloaded", message=message, retry_after_ms=1000)

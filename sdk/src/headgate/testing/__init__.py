"""A gateway for your own tests: no sockets, no waiting, deterministic answers, a price list, faults on demand.

    from headgate.testing import FakeGateway, Refuse

    gateway = FakeGateway()
    gateway.script(Refuse(429, "rate_limit_exceeded", retry_after=1.5))
    client = gateway.client()                      # or gateway.async_client()
    client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])

The pytest fixture `fake_gateway` gives a fresh one to each test. Time is the gateway's own: pauses pass at once.
`Cassette` records a real gateway once and plays it back.
"""

from headgate.testing.cassette import Cassette
from headgate.testing.clock import FakeClock
from headgate.testing.faults import (
    Cut,
    Disconnect,
    Duplicate,
    ErrorEvent,
    FailAfterCommit,
    Fault,
    Garble,
    LoseOwner,
    Refuse,
    Split,
    Stall,
)
from headgate.testing.gateway import FakeGateway, SeenRequest
from headgate.testing.models import FakeModel

__all__ = [
    "Cassette",
    "Cut",
    "Disconnect",
    "Duplicate",
    "ErrorEvent",
    "FailAfterCommit",
    "FakeClock",
    "FakeGateway",
    "FakeModel",
    "Fault",
    "Garble",
    "LoseOwner",
    "Refuse",
    "SeenRequest",
    "Split",
    "Stall",
]

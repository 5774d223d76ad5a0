"""The table: what goes wrong, what the caller gets, how often was asked, what was billed.

It holds for both colours, against the fake gateway and against a real one on a port behind a proxy that makes the
same trouble.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import pytest
from headgate import Headgate, Timeout, errors
from headgate._core.clock import Clock
from headgate.testing import (
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

from tests.deployment import ECHO, Gateway

from .conftest import HELLO, Driver
from .troubled import TroubledProxy

TEXT = "hello brave new world"


@dataclass(frozen=True)
class Scenario:
    """A row of the table; `pauses` None leaves them unchecked."""

    name: str
    faults: Sequence[Fault]
    expect: str | type[errors.HeadgateError] = TEXT
    asked: int = 1
    billed: int = 1
    pauses: list[float] | None = None
    options: dict[str, Any] = field(default_factory=dict)


WHOLE = [
    Scenario("nothing goes wrong", [], pauses=[]),
    Scenario("rate limit, exact pace", [Refuse(429, "rate_limit_exceeded", 1.25)], asked=2, pauses=[1.25]),
    Scenario(
        "rate limit, pace as a date",
        [Refuse(429, "rate_limit_exceeded", headers={"retry-after": "Thu, 01 Jan 2026 00:00:07 GMT"})],
        asked=2,
        pauses=[7.0],
    ),
    Scenario("budget in flight", [Refuse(429, "budget_in_flight", 1)], asked=2, pauses=[1.0]),
    Scenario("overloaded twice", [Refuse(503, "overloaded", 1)] * 2, asked=3, pauses=[1.0, 1.0]),
    Scenario(
        "overloaded for good", [Refuse(503, "overloaded", 1)] * 3, errors.ModelOverloaded, asked=3, billed=0
    ),
    Scenario("refused connection", [Disconnect()], asked=2),
    Scenario("reset with unknown outcome", [Disconnect("first_byte")], asked=2),
    Scenario("5xx after the work was done", [FailAfterCommit()], asked=2),
    Scenario("reset after the work was done", [FailAfterCommit(None)], asked=2),
    Scenario("silence", [Stall()], asked=2),
    Scenario("the same key in flight", [Refuse(409, "idempotency_in_progress", 2)], asked=2, pauses=[2.0]),
    Scenario("quota", [Refuse(402, "budget_exhausted")], errors.QuotaExceeded, billed=0, pauses=[]),
    Scenario("quota in other clothes", [Refuse(429, "insufficient_quota")], errors.QuotaExceeded, billed=0),
    Scenario("bad key", [Refuse(401, "invalid_api_key")], errors.Unauthenticated, billed=0),
    Scenario("spent key", [Refuse(409, "idempotency_consumed")], errors.IdempotencyConsumed, billed=0),
    Scenario(
        "the server says no",
        [Refuse(500, "internal_error", headers={"x-should-retry": "false"})],
        errors.ServerError,
        billed=0,
    ),
    Scenario(
        "the server says yes",
        [Refuse(400, "invalid_request", headers={"x-should-retry": "true"})],
        asked=2,
    ),
    Scenario(
        "a pace past the deadline",
        [Refuse(429, "rate_limit_exceeded", 30)],
        errors.RateLimited,
        billed=0,
        pauses=[],
        options={"deadline": 10},
    ),
    Scenario(
        "a pace past reason",
        [Refuse(429, "rate_limit_exceeded", 121)],
        errors.RateLimited,
        billed=0,
        pauses=[],
    ),
    Scenario(
        "no retries asked",
        [Refuse(503, "overloaded")],
        errors.ModelOverloaded,
        billed=0,
        options={"max_retries": 0},
    ),
    Scenario("an answer of another shape", [Garble()], errors.ResponseShapeError, billed=0),
    Scenario(
        "silence until the deadline", [Stall(), Stall()], errors.TimedOut, billed=0, options={"deadline": 100}
    ),
]

STREAMED = [
    Scenario("nothing goes wrong", [], pauses=[]),
    Scenario("byte by byte", [Split(1)]),
    Scenario("in odd pieces", [Split(7)]),
    Scenario("rate limit before the first event", [Refuse(429, "rate_limit_exceeded", 2)], asked=2, pauses=[2.0]),
    Scenario("refused connection", [Disconnect()], asked=2),
    Scenario("silence before the first byte", [Stall()], asked=2),
    Scenario("5xx after the work was done", [FailAfterCommit()], asked=2),
    Scenario("cut before the first event", [Cut(0)], asked=2),
    Scenario("error before the first event", [ErrorEvent(0)], asked=2),
    Scenario("quota", [Refuse(402, "budget_exhausted")], errors.QuotaExceeded, billed=0),
    Scenario("cut", [Cut(2)], errors.StreamInterrupted),
    Scenario("ends without an end mark", [Cut(2, tidy=True)], errors.StreamInterrupted),
    Scenario("silence in the middle", [Stall(2)], errors.StreamInterrupted),
    Scenario("the backend fails in the middle", [ErrorEvent(2)], errors.StreamInterrupted),
    Scenario("not a stream at all", [Garble()], errors.ResponseShapeError, billed=0),
    Scenario(
        "not our events",
        [Garble(b'data: {"choices": 3}\n\n', "text/event-stream")],
        errors.ResponseShapeError,
        billed=0,
    ),
    Scenario("resumed after a cut", [Cut(2)], asked=2, options={"resumable": 20}),
    Scenario("resumed twice", [Cut(2), Cut(1)], asked=3, options={"resumable": 20}),
    Scenario("resumed after silence", [Stall(1)], asked=2, options={"resumable": 20}),
    Scenario("resumed, all events twice", [Cut(3), Duplicate()], asked=2, options={"resumable": 20}),
    Scenario("every event twice", [Duplicate()], options={"resumable": 20}),
    Scenario("the owner is gone", [Cut(2), LoseOwner()], errors.StreamLost, asked=2, options={"resumable": 20}),
    Scenario(
        "resume that never comes through",
        [Cut(2), Disconnect(), Disconnect(), Disconnect()],
        errors.StreamInterrupted,
        asked=3,
        options={"resumable": 20},
    ),
]


def by_name(scenario: Scenario) -> str:
    return scenario.name


class Stage(Protocol):
    """Where a scenario is played: a gateway that makes trouble as it is told."""

    def client(self, faults: Sequence[Fault]) -> Any:
        """A client of it; its requests meet these faults."""
        ...

    @property
    def seen(self) -> Sequence[Any]:
        """The requests that arrived."""
        ...

    @property
    def pauses(self) -> list[float]:
        """How long the client paused."""
        ...

    async def billed(self, records: int) -> int:
        """What was billed, in nano-units, once there are so many records."""
        ...


class FakeStage:
    """The fake gateway."""

    def __init__(self, drive: Driver) -> None:
        self._drive = drive
        self.seen = drive.gateway.seen
        self.pauses = drive.gateway.clock.pauses

    def client(self, faults: Sequence[Fault]) -> Any:
        self._drive.gateway.script(*faults)
        return self._drive.client()

    async def billed(self, records: int) -> int:
        assert len(self._drive.gateway.records) == records
        return self._drive.gateway.spent


class RealStage:
    """A real gateway behind a troubled proxy; the client's pauses pass at once."""

    def __init__(self, drive: Driver, real: Gateway, proxy: TroubledProxy) -> None:
        self._drive = drive
        self._real = real
        self._proxy = proxy
        self._key = real.key(project=f"scenario-{secrets.token_hex(8)}")
        self.pauses: list[float] = []

    @property
    def seen(self) -> Sequence[Any]:
        return self._proxy.seen

    def client(self, faults: Sequence[Fault]) -> Any:
        self._proxy.script(*faults)
        silent = any(isinstance(fault, Stall) for fault in faults)
        clocks = Timeout(first_byte=0.5, idle=0.5) if silent else Timeout(first_byte=30, idle=30)
        clock = Clock(
            utc=lambda: datetime(2026, 1, 1, tzinfo=UTC), sleep=self.pauses.append, sleep_async=self._pause
        )
        return self._drive.kind(api_key=self._key, base_url=self._proxy.url, timeout=clocks, clock=clock)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def billed(self, records: int) -> int:
        def found() -> list[Any]:
            with Headgate(api_key=self._key, base_url=self._real.url) as client:
                return client.usage.records()

        rows = found()
        async with asyncio.timeout(20):
            # The end of a stream whose client left is settled a moment later.
            while len(rows) < records:
                await asyncio.sleep(0.02)
                rows = found()
        assert len(rows) == records
        return sum(row.amount.nano for row in rows if row.amount)


async def check(stage: Stage, scenario: Scenario, outcome: str | errors.HeadgateError) -> int:
    """Compare with the table; what was billed, in nano-units."""
    if isinstance(scenario.expect, str):
        assert outcome == scenario.expect
    else:
        assert isinstance(outcome, scenario.expect), outcome
        assert not isinstance(outcome, errors.StatusError) or outcome.request_id
    assert len(stage.seen) == scenario.asked
    keys = {seen.headers["idempotency-key"] for seen in stage.seen}
    assert len(keys) == 1
    assert len({seen.body for seen in stage.seen}) == 1
    numbers = [seen.headers.get("headgate-attempt", "1") for seen in stage.seen]
    assert numbers == [str(n) for n in range(1, scenario.asked + 1)]
    if scenario.pauses is not None:
        assert stage.pauses == scenario.pauses
    return await stage.billed(scenario.billed)


async def play_whole(drive: Driver, stage: Stage, scenario: Scenario) -> None:
    outcome: str | errors.HeadgateError
    async with drive.within(stage.client(scenario.faults)) as client:
        with client.meter() as meter:
            try:
                answer = await drive.do(
                    client.chat.completions.create, model="echo", messages=HELLO, **scenario.options
                )
            except errors.HeadgateError as error:
                outcome = error
                assert len(error.attempts) in {scenario.asked, 0}
            else:
                outcome = answer.text
                assert len(answer.attempts) == scenario.asked
                assert answer.attempts[-1].status == 200
    spent = await check(stage, scenario, outcome)
    if isinstance(outcome, str):
        # What the meter counted is what the ledger billed, replays of lost answers included.
        assert meter.cost.nano == spent


async def play_stream(drive: Driver, stage: Stage, scenario: Scenario) -> None:
    outcome: str | errors.HeadgateError
    pieces: list[str] = []
    async with drive.within(stage.client(scenario.faults)) as client:
        with client.meter() as meter:
            try:
                manager = client.chat.completions.stream(model="echo", messages=HELLO, **scenario.options)
                async with drive.within(manager) as stream:
                    async for piece in drive.each(stream.text):
                        pieces.append(piece)
            except errors.HeadgateError as error:
                outcome = error
                if isinstance(error, errors.StreamInterrupted):
                    assert error.partial == "".join(pieces)
                    assert error.partial
                    assert error.attempts
            else:
                outcome = "".join(pieces)
                assert stream.usage.total_tokens == 8
                final = await drive.do(stream.final)
                assert final.text == outcome
                assert final.cost == stream.cost
    if isinstance(stage, FakeStage):
        assert not client._engine.transport.open_streams
    spent = await check(stage, scenario, outcome)
    if isinstance(outcome, str):
        assert stream.cost.nano == meter.cost.nano == spent


@pytest.mark.parametrize("scenario", WHOLE, ids=by_name)
async def test_whole_answers(drive: Driver, scenario: Scenario) -> None:
    await play_whole(drive, FakeStage(drive), scenario)


@pytest.mark.parametrize("scenario", STREAMED, ids=by_name)
async def test_streams(drive: Driver, scenario: Scenario) -> None:
    await play_stream(drive, FakeStage(drive), scenario)


ONLY_FAKE = {
    "silence until the deadline": "a hundred seconds of it",
    "cut before the first event": "the gateway bills what it has handed out, whether or not it arrived",
    "error before the first event": "as above",
    "the owner is gone": "test_real_errors kills it",
}


def on_both(scenarios: Sequence[Scenario]) -> list[Scenario]:
    return [scenario for scenario in scenarios if scenario.name not in ONLY_FAKE]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("scenarios"), ECHO, workers=2).start()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def proxy(real: Gateway) -> Iterator[TroubledProxy]:
    proxy = TroubledProxy(real.url)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("scenario", on_both(WHOLE), ids=by_name)
async def test_whole_answers_of_a_real_gateway(
    drive: Driver, real: Gateway, proxy: TroubledProxy, scenario: Scenario
) -> None:
    await play_whole(drive, RealStage(drive, real, proxy), scenario)


@pytest.mark.parametrize("scenario", on_both(STREAMED), ids=by_name)
async def test_streams_of_a_real_gateway(
    drive: Driver, real: Gateway, proxy: TroubledProxy, scenario: Scenario
) -> None:
    await play_stream(drive, RealStage(drive, real, proxy), scenario)


async def test_an_answer_says_what_it_took(drive: Driver) -> None:
    drive.gateway.script(Refuse(503, "overloaded", 2), FailAfterCommit())
    client = drive.client()
    answer = await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert answer.replayed
    assert [(attempt.status, attempt.error) for attempt in answer.attempts] == [
        (503, "ModelOverloaded"),
        (500, "ServerError"),
        (200, None),
    ]
    assert [attempt.waited for attempt in answer.attempts] == [*drive.gateway.clock.pauses, 0.0]
    assert answer.request_id == drive.gateway.records[0]["request_id"]
    assert answer.idempotency_key == drive.gateway.seen[0].headers["idempotency-key"]
    assert str(answer.cost) == "0.000012"
    assert answer.cost.price == "price_fake"
    assert answer.raw.status == 200


async def test_unknown_outcomes_are_not_repeated_where_nothing_replays(drive: Driver) -> None:
    client = drive.client()
    client._engine.session.replays = False
    drive.gateway.script(Disconnect("first_byte"))
    with pytest.raises(errors.ConnectionFailed):
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert len(drive.gateway.seen) == 1


async def test_the_deadline_travels(drive: Driver) -> None:
    drive.gateway.script(Refuse(429, "rate_limit_exceeded", 4))
    await drive.do(drive.client().chat.completions.create, model="echo", messages=HELLO, deadline=10)
    assert [seen.headers["headgate-deadline-ms"] for seen in drive.gateway.seen] == ["10000", "6000"]


async def test_no_deadline_sends_none(drive: Driver) -> None:
    await drive.do(drive.client(timeout=None).chat.completions.create, model="echo", messages=HELLO)
    assert "headgate-deadline-ms" not in drive.gateway.seen[0].headers


async def test_a_deadline_that_passed_asks_nobody(drive: Driver) -> None:
    with pytest.raises(errors.TimedOut) as caught:
        await drive.do(drive.client().chat.completions.create, model="echo", messages=HELLO, deadline=0)
    assert caught.value.clock == "deadline"
    assert not drive.gateway.seen


async def test_a_key_whose_stream_was_cut_is_spent(drive: Driver) -> None:
    drive.gateway.script(Cut(2))
    create = drive.client().chat.completions.create
    stream = await drive.do(create, model="echo", messages=HELLO, stream=True, idempotency_key="mine")
    with pytest.raises(errors.StreamInterrupted):
        await drive.do(stream.final)
    with pytest.raises(errors.IdempotencyConsumed) as caught:
        await drive.do(create, model="echo", messages=HELLO, stream=True, idempotency_key="mine")
    assert caught.value.record == drive.gateway.records[0]["request_id"]
    with pytest.raises(errors.IdempotencyMismatch):
        await drive.do(create, model="echo", messages=[*HELLO, *HELLO], idempotency_key="mine")

"""Each error that the client promises, raised once by its real cause: a gateway on a port, real sockets."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import headgate
import pytest
from headgate import Timeout, errors

from tests.deployment import ECHO, SLOW, Gateway, wait_for

from .conftest import HELLO, Driver, say

MODELS = (
    ECHO
    + SLOW
    + """
[[models]]
id = "broken"
task = "infer"
backend = "onnx"
source = "broken.onnx"
required = false

[[models]]
id = "far"
task = "chat"
price = { input = "1", output = "2" }
[[models.targets]]
backend = "openai"
model = "far"
base_url = "http://127.0.0.1:9/v1"
api_key = "file:provider.key"
"""
)

LONG = {"model": "slow", "messages": say("w " * 100), "max_tokens": 100, "options": {"delay_ms": 200}}
"""20 s: what happens meanwhile must come before its end on the busiest of machines."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("errors")
    (folder / "broken.onnx").write_text("no model")
    (folder / "provider.key").write_text("x")
    gateway = Gateway(folder, MODELS, workers=2).start()
    yield gateway
    gateway.close()


class Case:
    """What a cause is given: a driver, a gateway, and a client of it that does not retry."""

    def __init__(self, drive: Driver, real: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drive = drive
        self.do = drive.do
        self.real = real
        self.monkeypatch = monkeypatch
        self.client = self.made(real.key())

    def made(self, key: str, url: str | None = None, **options: Any) -> Any:
        return self.drive.kind(
            api_key=key, base_url=url or self.real.url, **{"max_retries": 0, "timeout": 30, **options}
        )

    def holder(self, **fields: Any) -> Any:
        """A client with a key of its own."""
        return self.client.with_options(api_key=self.real.key(**fields))

    async def ask(self, client: Any = None, /, **more: Any) -> Any:
        asked = {"model": "echo", "messages": HELLO, **more}
        return await self.do((client or self.client).chat.completions.create, **asked)

    def kill(self, word: str) -> None:
        """End the gateway's processes whose command line has the word."""
        for child in self.real.children(word):
            child.kill()


Cause = Callable[[Case], Awaitable[Any]]
CAUSES: dict[str, Cause] = {}


def cause(of: type[errors.HeadgateError]) -> Callable[[Cause], Cause]:
    def keep(function: Cause) -> Cause:
        CAUSES[of.__name__] = function
        return function

    return keep


@cause(errors.ConfigurationError)
async def no_key(case: Case) -> None:
    case.made(" ")


@cause(errors.OfflineError)
async def the_network_is_forbidden(case: Case) -> None:
    case.monkeypatch.setenv("HEADGATE_OFFLINE", "1")
    case.made("hg_x")


@cause(errors.ConnectionFailed)
async def nobody_listens(case: Case) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with case.drive.within(case.made("hg_x", f"http://127.0.0.1:{taken.getsockname()[1]}")) as client:
            await case.ask(client)


@cause(errors.TimedOut)
async def an_answer_takes_too_long(case: Case) -> None:
    await case.ask(case.client.with_options(timeout=Timeout(first_byte=0.1, idle=0.1)), **LONG)


@cause(errors.InvalidRequest)
async def no_message(case: Case) -> None:
    await case.ask(messages=[])


@cause(errors.Unauthenticated)
async def a_key_that_is_none(case: Case) -> None:
    await case.ask(case.client.with_options(api_key="hg_wrong"))


@cause(errors.Forbidden)
async def a_model_that_is_not_allowed(case: Case) -> None:
    await case.ask(case.holder(models=["slow"]))


@cause(errors.NotFound)
async def a_model_that_is_not_there(case: Case) -> None:
    await case.ask(model="nope")


@cause(errors.TooLarge)
async def a_body_over_the_limit(case: Case) -> None:
    await case.ask(messages=say("x" * (33 << 20)))


@cause(errors.QuotaExceeded)
async def a_budget_that_is_spent(case: Case) -> None:
    await case.ask(case.holder(budget="0.000001/total"))


@cause(errors.BudgetExceeded)
async def a_budget_of_the_client(case: Case) -> None:
    with case.client.budget(max_cost="0.000001"):
        await case.ask()


@cause(errors.RateLimited)
async def too_many_requests(case: Case) -> None:
    hasty = case.holder(rpm=1)
    await case.ask(hasty)
    await case.ask(hasty)


@cause(errors.BudgetInFlight)
async def a_budget_that_others_hold(case: Case) -> None:
    poor = case.holder(budget="0.0005/total")
    async with case.drive.within(poor.chat.completions.stream(**LONG)):
        await case.ask(poor, **LONG)


@cause(errors.IdempotencyInProgress)
async def the_same_key_at_once(case: Case) -> None:
    key = f"at-once-{case.drive.colour}"
    async with case.drive.within(case.client.chat.completions.stream(**LONG, idempotency_key=key)):
        await case.ask(**LONG, stream=True, idempotency_key=key)


@cause(errors.IdempotencyMismatch)
async def the_same_key_with_another_body(case: Case) -> None:
    key = f"mismatch-{case.drive.colour}"
    await case.ask(idempotency_key=key)
    await case.ask(messages=say("other"), idempotency_key=key)


@cause(errors.IdempotencyConsumed)
async def a_key_whose_stream_was_left(case: Case) -> None:
    key = f"left-{case.drive.colour}"
    stream = await case.ask(**LONG, stream=True, idempotency_key=key)
    async for _ in case.drive.each(stream.text):
        break
    await case.do(stream.close)
    async with asyncio.timeout(20):
        while True:
            try:
                await case.ask(**LONG, stream=True, idempotency_key=key)
            except errors.IdempotencyInProgress:
                await asyncio.sleep(0.02)  # what was left is still being settled
            except errors.IdempotencyConsumed as error:
                record = await case.do(case.client.usage.retrieve, error.record)
                assert record.outcome == "client_gone"
                assert record.amount.nano > 0
                raise


@cause(errors.ModelOverloaded)
async def a_model_that_did_not_load(case: Case) -> None:
    await case.do(case.client.infer.create, model="broken", inputs={"x": [1]})


@cause(errors.BackendFailed)
async def a_provider_that_is_not_there(case: Case) -> None:
    await case.ask(model="far")


class _Failing(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_error(507)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@cause(errors.ServerError)
async def a_proxy_in_front_that_fails(case: Case) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Failing) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            async with case.drive.within(case.made("hg_x", f"http://127.0.0.1:{proxy.server_port}")) as client:
                await case.ask(client)
        finally:
            proxy.shutdown()
            thread.join()


@cause(errors.ResponseShapeError)
async def a_text_of_another_type(case: Case) -> None:
    # Local models refuse a form that they cannot keep; a provider may not care.
    careless = {"response_format": None}
    await case.do(
        case.client.chat.completions.parse,
        model="echo",
        messages=HELLO,
        response_format=list[int],
        extra_body=careless,
    )


@cause(errors.StreamInterrupted)
async def an_engine_that_dies(case: Case) -> None:
    # Some worker was ready; this one may not have met the engine yet, or it died for the other colour.
    stream = await case.ask(case.client.with_options(max_retries=20), **LONG, stream=True)
    case.kill("e1-0.json")
    try:
        await case.do(stream.final)
    except errors.StreamInterrupted as error:
        assert error.partial.startswith("w")
        assert error.code == "upstream_error"
        raise


@cause(errors.StreamLost)
async def a_stream_whose_worker_dies(case: Case) -> None:
    patient = case.client.with_options(max_retries=20)
    stream = await case.ask(patient, **LONG, stream=True, resumable=20)
    case.kill("headgate_gateway.worker")
    try:
        await case.do(stream.final)
    except errors.StreamLost as error:
        assert error.partial.startswith("w")
        assert error.cost is not None
        await case.do(patient.usage.retrieve, error.record)
        raise


ABSTRACT = {"HeadgateError", "StatusError", "Conflict"}


def test_no_error_is_forgotten() -> None:
    assert set(CAUSES) == set(headgate._ERRORS) - ABSTRACT


@pytest.mark.parametrize("name", CAUSES)
async def test_errors_have_real_causes(
    name: str, drive: Driver, real: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(real.is_ready, "readiness")
    kind: type[errors.HeadgateError] = getattr(headgate, name)
    case = Case(drive, real, monkeypatch)
    async with drive.within(case.client):
        with pytest.raises(kind) as caught:
            await CAUSES[name](case)
    error = caught.value
    assert type(error) is kind
    assert str(error)
    if isinstance(error, errors.StatusError) and kind is not errors.ServerError:
        assert error.request_id
        assert error.code
        assert error.attempts[-1].status == error.status
    if isinstance(error, errors.QuotaExceeded | errors.BudgetExceeded):
        assert not error.retryable

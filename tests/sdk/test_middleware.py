"""What a user puts around attempts and around calls, in both colours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from headgate import errors
from headgate.testing import Disconnect, FailAfterCommit, Refuse
from headgate.types import CallInfo, Received, Request

from .conftest import HELLO, Colour, Driver


def layer(colour: Colour, before: Callable[[Request], Request], after: Callable[[Any], Any]) -> Any:
    """A middleware of either colour from what it does before and after."""

    def plain(request: Request, send: Any) -> Any:
        return after(send(before(request)))

    async def awaited(request: Request, send: Any) -> Any:
        return after(await send(before(request)))

    return plain if colour == "sync" else awaited


def signing(request: Request) -> Request:
    return dataclasses.replace(request, headers={**request.headers, "x-signed": str(len(request.body or b""))})


async def test_it_runs_once_per_attempt(drive: Driver) -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str) -> Callable[[Any], Any]:
        return lambda answer: seen.append((name, answer.status)) or answer

    layers = [layer(drive.colour, signing, note("outer")), layer(drive.colour, lambda r: r, note("inner"))]
    client = drive.client(middleware=layers)
    drive.gateway.script(Refuse(503, "overloaded", 1), FailAfterCommit())
    answer = await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    # The gateway's refusals are answers here; what is tried again is decided outside.
    assert seen == [(name, status) for status in (503, 500, 200) for name in ("inner", "outer")]
    assert len(answer.attempts) == 3
    assert {request.headers["x-signed"] for request in drive.gateway.seen} == {
        str(len(drive.gateway.seen[0].body))
    }
    seen.clear()
    async with drive.within(client.chat.completions.stream(model="echo", messages=HELLO)) as stream:
        assert (await drive.do(stream.final)).text == "hello brave new world"
    assert seen == [("inner", 200), ("outer", 200)]
    await drive.do(client.close)


async def test_it_may_answer_itself(drive: Driver) -> None:
    kept: dict[bytes | None, Received] = {}

    def cached(request: Request, send: Any) -> Any:
        return kept.get(request.body) or kept.setdefault(request.body, send(request))

    async def cached_async(request: Request, send: Any) -> Any:
        return kept.get(request.body) or kept.setdefault(request.body, await send(request))

    client = drive.client(middleware=[functools.partial(cached if drive.colour == "sync" else cached_async)])
    create = client.chat.completions.create
    texts = [(await drive.do(create, model="echo", messages=HELLO)).text for _ in range(3)]
    assert texts == ["hello brave new world"] * 3
    assert len(drive.gateway.seen) == 1


async def test_it_sees_what_never_arrived(drive: Driver) -> None:
    caught: list[errors.HeadgateError] = []

    def watch(request: Request, send: Any) -> Any:
        try:
            return send(request)
        except errors.HeadgateError as error:
            caught.append(error)
            raise

    async def watch_async(request: Request, send: Any) -> Any:
        try:
            return await send(request)
        except errors.HeadgateError as error:
            caught.append(error)
            raise

    client = drive.client(middleware=[watch if drive.colour == "sync" else watch_async])
    drive.gateway.script(Disconnect())
    await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert [type(error) for error in caught] == [errors.ConnectionFailed]


async def test_the_wrong_kind_is_named(drive: Driver) -> None:
    other = layer("async" if drive.colour == "sync" else "sync", lambda r: r, lambda a: a)
    with pytest.raises(errors.ConfigurationError, match="async def"):
        drive.client(middleware=[other])
    whole = Received(200, {}, b"{}")
    client = drive.client(middleware=[layer(drive.colour, lambda r: r, lambda _: whole)])
    with pytest.raises(TypeError, match="a stream with a whole answer"):
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO, stream=True)
    client = drive.client(middleware=[layer(drive.colour, lambda r: r, lambda _: object())])
    with pytest.raises(TypeError, match="a whole call with a stream"):
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)


async def test_observers_stand_around_whole_calls(drive: Driver) -> None:
    seen: list[Any] = []

    def observer(name: str) -> Callable[[CallInfo], Any]:
        @contextmanager
        def around(call: CallInfo) -> Iterator[None]:
            seen.append((name, call.method, call.model, len(call.attempts)))
            try:
                yield
            except errors.HeadgateError as error:
                seen.append(type(error))
                raise
            finally:
                seen.append((name, len(call.attempts), call.idempotency_key))

        return around

    client = drive.client(observers=[observer("a"), observer("b")])
    drive.gateway.script(Refuse(503, "overloaded", 1))
    answer = await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    key = answer.idempotency_key
    assert seen == [("a", "POST", "echo", 0), ("b", "POST", "echo", 0), ("b", 2, key), ("a", 2, key)]
    seen.clear()
    drive.gateway.script(Refuse(402, "budget_exhausted"))
    with pytest.raises(errors.QuotaExceeded):
        await drive.do(client.with_options().chat.completions.create, model="echo", messages=HELLO, stream=True)
    assert seen.count(errors.QuotaExceeded) == 2
    seen.clear()
    await drive.do(client.models.list)
    assert seen[0] == ("a", "GET", None, 0)

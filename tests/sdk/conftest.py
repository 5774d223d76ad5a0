"""One set of scenarios, two colours: a driver that calls either client, and waits where that is needed."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from headgate import AsyncHeadgate, Headgate
from headgate.testing import FakeGateway

Colour = Literal["sync", "async"]


class Driver:
    """Runs scenarios against a fake gateway in one colour."""

    def __init__(self, colour: Colour, gateway: FakeGateway) -> None:
        self.colour = colour
        self.gateway = gateway

    @property
    def kind(self) -> Any:
        """The client's class."""
        return Headgate if self.colour == "sync" else AsyncHeadgate

    def client(self, **options: Any) -> Any:
        return self.gateway.client(**options) if self.colour == "sync" else self.gateway.async_client(**options)

    async def do(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call, and wait for the result if it is to be waited for."""
        result = call(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def each(self, iterable: Any) -> AsyncIterator[Any]:
        """Iterate either kind."""
        if hasattr(iterable, "__aiter__"):
            async for item in iterable:
                yield item
        else:
            for item in iterable:
                yield item

    async def list(self, iterable: Any) -> list[Any]:
        return [item async for item in self.each(iterable)]

    @asynccontextmanager
    async def within(self, manager: Any) -> AsyncIterator[Any]:
        """Enter either kind of context manager."""
        if hasattr(manager, "__aenter__"):
            async with manager as value:
                yield value
        else:
            with manager as value:
                yield value


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> Colour:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def drive(colour: Colour, gateway: FakeGateway) -> Driver:
    return Driver(colour, gateway)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADGATE_API_KEY", "HEADGATE_BASE_URL", "HEADGATE_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


HELLO = [{"role": "user", "content": "hello brave new world"}]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]

"""One small gateway of real processes for all tests of HTTP, and more for those that need their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.deployment import wait_for
from tests.processes import Gateway, running

ECHO = {
    "models": [
        {"id": "echo", "task": "chat", "backend": "echo", "price": {"input": "1", "output": "2"}},
        {"id": "org/words", "task": "completion", "backend": "echo", "aliases": ["words"]},
        {"id": "vectors", "task": "embed", "backend": "echo", "price": {"input": "1"}},
        {"id": "tensors", "task": "infer", "backend": "echo", "version": "3"},
    ]
}


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """One gateway for every test that does no harm to it."""
    with running({**ECHO, "server": {"max_body_mb": 1}}) as started:
        yield started


@pytest.fixture(scope="session")
def key(gateway: Gateway) -> str:
    """A key without limits."""
    return gateway.key()


@pytest.fixture
def client(gateway: Gateway, key: str) -> Iterator[httpx.Client]:
    """A client with that key."""
    with gateway.client(key) as made:
        yield made


@pytest.fixture(name="wait_for", scope="session")
def wait_for_fixture() -> Callable[..., Any]:
    """`wait_for(condition, what)`."""
    return wait_for


@pytest.fixture(scope="session")
def run_gateway() -> Callable[..., contextlib.AbstractContextManager[Gateway]]:
    """`run_gateway(settings)`: a gateway of the test's own."""
    return running

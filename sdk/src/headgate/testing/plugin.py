"""pytest's door: the fixture `fake_gateway`. Nothing of the client is imported until a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from headgate.testing.gateway import FakeGateway


@pytest.fixture
def fake_gateway() -> FakeGateway:
    """A fresh fake gateway: `fake_gateway.client()` or `fake_gateway.async_client()`."""
    from headgate.testing.gateway import FakeGateway

    return FakeGateway()

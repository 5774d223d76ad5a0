"""What several rooms' tests share: one PostgreSQL server, and no clock over what is generated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from benchmarks.postgres_server import Server

# A busy machine is slow, which is no fault of what is tested.
settings.register_profile("headgate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headgate")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    from benchmarks.postgres_server import serving

    with serving() as server:
        yield server


@pytest.fixture
def database(postgres_server: Server) -> str:
    """The URL of a fresh, migrated database."""
    return postgres_server.database()

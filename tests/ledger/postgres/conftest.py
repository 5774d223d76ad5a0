"""A fresh database for each test, a wire to it that can be cut, and cores on both kinds of store."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from headgate_gateway.ledger.audit import AuditReport
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.postgres.audit import audit
from headgate_gateway.ledger.postgres.core import PostgresCore
from headgate_gateway.ledger.postgres.history import PostgresHistory
from headgate_gateway.ledger.postgres.read_only import read_only

from benchmarks.postgres_server import Server

PEPPER = b"p" * 32


Moment = Literal["before_commit", "after_commit"]

_TAG = b"COMMIT\0"


class Proxy:
    """Forwards connections to PostgreSQL's Unix socket.

    Attributes:
        cut: When to break the connection that passes this moment next; None once it was done. `before_commit`
            lets nothing of the writes through, `after_commit` swallows the answer.
        cuts: How often it was done.
        refuse_after_cut: Let nobody through any more once it was done.
        flowing: Cleared, everything stands still: no byte passes, no connection ends.
    """

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut: Moment | None = None
        self.cuts = 0
        self.refusing = self.refuse_after_cut = False
        self.flowing = threading.Event()
        self.flowing.set()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self.flowing.set()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                self._open += [client, server]
                for source, sink, moment in (
                    (client, server, "before_commit"), (server, client, "after_commit"),
                ):  # fmt: skip
                    threading.Thread(target=self._pump, args=(source, sink, moment), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, moment: Moment) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if self.cut == moment and _TAG in data:
                    self.cut = None
                    self.refusing = self.refuse_after_cut
                    self.cuts += 1
                    break
                self.flowing.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxied(server: Server, url: str) -> Iterator[tuple[Proxy, str]]:
    """A wire that can be cut, and the URL of a fresh database at its end."""
    proxy = Proxy(server.folder / ".s.PGSQL.5432")
    database = url.partition("@/")[2].partition("?")[0]
    yield proxy, f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}?sslmode=disable"
    proxy.close()


@pytest.fixture
def server(postgres_server: Server) -> Server:
    return postgres_server


@pytest.fixture
def url(server: Server) -> str:
    return server.database()


@pytest.fixture
def new_postgres_bench(url: str, tmp_path: Path, bench_class: Any) -> Iterator[Callable[..., Any]]:
    """Benches on one database, each a node of its own."""

    class PostgresBench(bench_class):  # type: ignore[misc]
        def __init__(self, name: str, url: str = url, seed: int = 7, **options: Any) -> None:
            self.url, self.options = url, {"local_time": True, **options}
            self.folder = tmp_path / name
            super().__init__(self.folder, seed)

        def _open(self) -> Any:
            return PostgresCore(self.url, self.folder, chain_key(PEPPER), self.clock, self.ids, **self.options)

        def audit(self, *, full: bool = True, archived: Path | None = None) -> AuditReport:
            return audit(self.url, self.folder, pepper=PEPPER, full=full, archived=archived)

        @contextlib.contextmanager
        def history(self) -> Iterator[PostgresHistory]:
            with read_only(self.url, 60.0) as db:
                yield PostgresHistory(db, chain_key(PEPPER), self.folder)

    made: list[Any] = []

    def new(name: str = "node", **options: Any) -> Any:
        made.append(PostgresBench(name, **options))
        return made[-1]

    yield new
    for bench in made:
        bench.core.close()
    for bench in made:
        report = bench.audit()
        assert report.ok, report.first_difference

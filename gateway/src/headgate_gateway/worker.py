"""A worker process: uvicorn around the app, and what binds it to ledger, engines and supervisor.

`python -m headgate_gateway.worker --settings FILE --parent-fd N --listen-fd M [A] --worker K [--ready-fd R]`.
Told by the supervisor or SIGTERM it drains: no more connections, in-flight requests have `server.drain_s` to
finish, then they are cut with an error, settled, and the process ends with 0. So it does, more quickly, when the
supervisor has died. May import everything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Final

import structlog
import uvicorn
import uvloop

from headgate_gateway import crashpoints, descriptors, garbage, parent
from headgate_gateway import settings as config
from headgate_gateway.admin.usage import usage_reader
from headgate_gateway.app import create_edge
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.http.accepting import Acceptor, Shares
from headgate_gateway.http.connection import BoundedConnection
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.inference.service import Inference
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.models.registry import ModelRegistry
from headgate_gateway.plugins import load_backends
from headgate_gateway.routing import Router
from headgate_gateway.streams import Siblings, Streams
from headgate_gateway.telemetry import logs
from headgate_gateway.telemetry.access import AccessLog
from headgate_gateway.telemetry.metrics import Metrics, pin_process
from headgate_gateway.upstream import HttpUpstream

ORPHANED_S: Final = 2.0
"""Seconds that requests may still take when the supervisor has died."""

CUT_S: Final = 15.0
"""Seconds that requests which were cut have to settle and say so; the ledger's own limit for one is 10."""

KEEP_ALIVE_S: Final = 65
"""Longer than the 60 s after which load balancers drop idle connections: they must be the first to close."""

DESCRIPTORS: Final = 65_536
"""As many a worker lets itself have, if it may: each client is one, and each call to a provider."""

_log = structlog.get_logger("headgate.worker")


class WorkerServer(uvicorn.Server):
    """uvicorn without its signal handling and listening, which the worker does itself; it says when it serves."""

    def __init__(self, config: uvicorn.Config, shares: Shares, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._shares = shares
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to the worker."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        config = self.config

        def make() -> BoundedConnection:
            return BoundedConnection(config, self.server_state, app_state={})

        self.servers = [Acceptor(listener, self._shares, make, config.ssl) for listener in sockets or ()]  # type: ignore[misc]
        self.started = True
        self._on_started()


def main(argv: list[str] | None = None) -> int:
    """Run a worker until it is told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m headgate_gateway.worker")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True, nargs="+")
    parser.add_argument("--worker", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    args = parser.parse_args(argv)
    parent.ignore_signals()
    settings = config.read_snapshot(args.settings)
    logs.configure(settings.log, f"worker {args.worker}")
    pin_process()
    descriptors.allow(DESCRIPTORS)
    crashpoints.arm(config.crash_order())
    listeners = [socket.socket(fileno=descriptor) for descriptor in args.listen_fd]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            serve(settings, listeners, worker=args.worker, parent_fd=args.parent_fd, ready_fd=args.ready_fd)
        )


async def serve(
    settings: config.Settings,
    listeners: list[socket.socket],
    *,
    worker: int,
    parent_fd: int,
    ready_fd: int | None,
) -> int:
    """Serve on bound and listening sockets until told to stop; a second one is where the admin API is."""
    admin_port = listeners[1].getsockname()[1] if len(listeners) > 1 else None
    async with open_rooms(settings, worker) as (rooms, ids), contextlib.AsyncExitStack() as stack:
        access = None
        if settings.log.access and settings.log.level in ("debug", "info"):
            later = asyncio.get_running_loop().call_later
            access = AccessLog(f"worker {worker}", text=logs.is_text(settings.log), later=later)
            stack.callback(access.close)
        proxies = settings.server.trusted_proxies
        server = WorkerServer(
            uvicorn.Config(
                create_edge(rooms, ids, access, admin_port),
                http=BoundedConnection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(proxies),
                forwarded_allow_ips="*" if "*" in proxies else list(proxies),
                timeout_keep_alive=KEEP_ALIVE_S,
                ssl_certfile=settings.server.tls_cert,
                ssl_keyfile=settings.server.tls_key,
            ),
            Shares(settings.layout.connections, worker),
            on_started=lambda: _started(ready_fd),
        )
        stop = Stop(server, rooms, settings.server.drain_s)
        parent.follow(parent_fd, told=stop.told, orphaned=stop.orphaned)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.drain)
        await server.serve(sockets=listeners)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.server.drain_s + CUT_S):
                await rooms.streams.finished()
        stop.done()
    return 0


def _started(ready_fd: int | None) -> None:
    """Everything is made and connections are accepted."""
    garbage.settle()
    parent.announce(ready_fd)


class Stop:
    """How a worker stops: once, gracefully, within bounds."""

    def __init__(self, server: uvicorn.Server, rooms: Rooms, drain_s: float) -> None:
        self._server = server
        self._drain_s = drain_s
        self._was_told = False
        self._inference = rooms.inference
        self._streams = rooms.streams
        self._timer: asyncio.TimerHandle | None = None

    def told(self) -> None:
        """The supervisor says so; the second time, hurry."""
        self._drain(0.0 if self._was_told else self._drain_s)
        self._was_told = True

    def drain(self) -> None:
        """Take no more; what is in flight may take `server.drain_s` and is then cut."""
        self._drain(self._drain_s)

    def orphaned(self) -> None:
        """The supervisor has died."""
        _log.warning("the supervisor has died; stopping")
        self._drain(ORPHANED_S)

    def _drain(self, seconds: float) -> None:
        """Whoever says less has it: a SIGTERM to all comes beside the supervisor's word."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._server.config.timeout_graceful_shutdown = seconds + CUT_S  # type: ignore[assignment]
        self._server.should_exit = True
        self._timer = loop.call_later(seconds, self._cut)

    def done(self) -> None:
        """Everything has been answered."""
        if self._timer is not None:
            self._timer.cancel()

    def _cut(self) -> None:
        _log.warning("cutting requests in flight", count=self._inference.in_flight)
        self._streams.cut()
        self._inference.cut_all()


@contextlib.asynccontextmanager
async def open_rooms(settings: config.Settings, worker: int) -> AsyncGenerator[tuple[Rooms, IdSource]]:
    """Everything that a worker's handlers reach, connected; closed in reverse order."""
    layout, clock = settings.layout, SystemClock()
    draw = random.SystemRandom()
    ids = IdSource(clock, random.Random(draw.getrandbits(128)))  # noqa: S311 - ids are names, not secrets
    async with contextlib.AsyncExitStack() as stack:
        ledger = LedgerClient(layout, worker=worker, clock=clock)
        await ledger.start()
        stack.push_async_callback(ledger.close)
        upstream = HttpUpstream()
        stack.push_async_callback(upstream.close)
        registry = ModelRegistry(
            settings, layout, load_backends(_backends(settings)), upstream, config.resolve_secret
        )
        await registry.start()
        stack.push_async_callback(registry.close)
        inference = Inference(
            ledger=ledger,
            registry=registry,
            router=Router(clock.monotonic, random.Random(draw.getrandbits(64))),  # noqa: S311 - spreads load
            clock=clock,
            ids=ids,
        )
        stack.push_async_callback(inference.close)
        streams = Streams()
        stack.callback(streams.close)
        siblings = Siblings(layout, worker, streams)
        await siblings.start()
        stack.push_async_callback(siblings.close)
        metrics = Metrics(
            [model.id for model in settings.models],
            _metrics_folder(layout.metrics),
            later=asyncio.get_running_loop().call_later,
        )
        stack.callback(metrics.flush)
        rooms = Rooms(
            settings=settings,
            layout=layout,
            ledger=ledger,
            inference=inference,
            registry=registry,
            usage=usage_reader(settings),
            metrics=metrics,
            clock=clock,
            streams=streams,
            siblings=siblings,
            started_s=clock.now_us() // 1_000_000,
        )
        yield rooms, ids


def _metrics_folder(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _backends(settings: config.Settings) -> set[str]:
    local = {model.backend for model in settings.models if model.backend is not None}
    return local | {target.backend for model in settings.models for target in model.targets}


if __name__ == "__main__":
    sys.exit(main())

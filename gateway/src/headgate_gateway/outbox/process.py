"""The outbox's process: plugins, store, ledger, and what ends it.

`python -m headgate_gateway.outbox --settings FILE --parent-fd N [--ready-fd R]`. Told to end: what was recorded
until then is handed over, for `GRACE_S` at most. What is cut off comes again at the next start.
May import this room.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
from pathlib import Path
from typing import Final

import structlog

from headgate_gateway import parent
from headgate_gateway import settings as config
from headgate_gateway.admin.usage import QueryTooSlow, UsageUnavailable, usage_reader
from headgate_gateway.backoff import Backoff
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.clock import Clock
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.ledger.line import LedgerUnavailable
from headgate_gateway.ledger.lookout import Lookout, SqliteLookout
from headgate_gateway.outbox.calling import Calling
from headgate_gateway.outbox.delivery import Delivery
from headgate_gateway.outbox.watch import Watch, measure
from headgate_gateway.plugins import load_consumers
from headgate_gateway.telemetry import logs
from headgate_gateway.telemetry.consumption import Consumption
from headgate_gateway.telemetry.metrics import pin_process

GRACE_S: Final = 5.0
"""How long consumers may take to end."""

NICE: Final = 5
"""Nobody waits for consumers: where processors are short, workers and ledger go first."""

_log = structlog.get_logger("headgate.outbox")


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m headgate_gateway.outbox")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    given = parser.parse_args(arguments)
    parent.ignore_signals()
    settings = config.read_snapshot(given.settings)
    logs.configure(settings.log, "outbox")
    pin_process()
    os.nice(NICE)
    try:
        return asyncio.run(_serve(settings, given.parent_fd, given.ready_fd))
    except (LedgerUnavailable, QueryTooSlow, UsageUnavailable, config.SecretError) as error:
        _log.error("the outbox cannot start", error=str(error))
        return 1


async def _serve(settings: config.Settings, parent_fd: int, ready_fd: int | None) -> int:
    clock, draw = SystemClock(), random.SystemRandom()
    stop = asyncio.Event()
    parent.follow(parent_fd, told=stop.set)  # what a consumer is in the middle of is given to it again
    reader, consumption = usage_reader(settings), Consumption()
    async with contextlib.AsyncExitStack() as stack:
        ledger = LedgerClient(settings.layout, worker=-1, clock=clock, actor="outbox")
        await ledger.start()
        stack.push_async_callback(ledger.close)
        begin = await reader.last()  # before plugins are imported, which may take long
        deliveries = [
            Delivery(name, Calling(name, hook), reader, ledger.advance, Backoff(draw), consumption, begin)
            for name, hook in load_consumers(settings.plugin_names).items()
        ]
        if not deliveries:  # they could be loaded when the supervisor looked
            _log.error("no plugin that takes usage records can be used")
            return 1
        lookout = _lookout(settings, clock)
        stack.callback(lookout.close)
        watching = [
            asyncio.create_task(work)
            for work in (Watch(lookout, deliveries).run(), measure(reader, clock, consumption))
        ]
        for task in watching:
            stack.push_async_callback(_ended, task)
        tasks = [asyncio.create_task(delivery.run(), name=delivery.name) for delivery in deliveries]
        parent.announce(ready_fd)
        _log.info("records are handed over", consumers=[delivery.name for delivery in deliveries])
        told = asyncio.create_task(stop.wait())
        await asyncio.wait({told, *watching, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in (*watching, *tasks):
            if task.done():
                task.result()  # raises what nobody thought of
        with contextlib.suppress(TimeoutError, QueryTooSlow, UsageUnavailable):
            async with asyncio.timeout(GRACE_S):
                last = await reader.last()
                for delivery in deliveries:
                    delivery.finish(last)
                await asyncio.wait(tasks)
        for task in tasks:
            if task.cancel():
                _log.warning("a consumer did not end; its records come again", consumer=task.get_name())
    return 0


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _lookout(settings: config.Settings, clock: Clock) -> Lookout:
    url = config.database(settings)
    if url is None:
        return SqliteLookout(settings.layout.store)
    from headgate_gateway.ledger.postgres.lookout import PostgresLookout

    return PostgresLookout(url, clock)

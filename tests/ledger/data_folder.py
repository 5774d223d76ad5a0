"""A data folder whose ledger is a process of its own, and what its clients ask."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from headgate_gateway.admin.commands import CreateKey, KeyCreated, SetPrice
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.admission import Admission, Principal
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.settings import Settings, write_snapshot
from headgate_plugin_api import Usage

CLOCK = SystemClock()


class DataFolder:
    """A data folder and its ledger.

    Attributes:
        arguments: More that the process is started with.
        inherited: Descriptors that it is given for these.
    """

    arguments: tuple[str, ...] = ()
    inherited: tuple[int, ...] = ()

    def __init__(self, settings: Settings, seed: int = 1) -> None:
        self.settings = settings
        self.layout = settings.layout
        self.ids = IdSource(CLOCK, random.Random(seed))
        self.ledger: subprocess.Popen[bytes] | None = None
        write_snapshot(settings, self.layout.settings)

    def start(self, limits: Callable[[], None] | None = None) -> None:
        """Start the ledger and wait until it is ready."""
        ready_read, ready_write = os.pipe()
        self.ledger = subprocess.Popen(
            [
                sys.executable, "-m", "headgate_gateway.ledger", "--settings", str(self.layout.settings),
                "--ready-fd", str(ready_write), *self.arguments,
            ],
            pass_fds=(ready_write, *self.inherited),
            preexec_fn=limits,
        )  # fmt: skip
        os.close(ready_write)
        with os.fdopen(ready_read) as ready:
            assert json.loads(ready.readline()) == {"ready": True}

    def kill(self) -> None:
        """kill -9."""
        assert self.ledger is not None
        self.ledger.kill()
        self.ledger.wait()

    def stop(self) -> int:
        """Stop gracefully; returns the exit code."""
        assert self.ledger is not None
        self.ledger.terminate()
        return self.ledger.wait(timeout=20)

    @asynccontextmanager
    async def client(self, worker: int = 0) -> AsyncIterator[LedgerClient]:
        """A connected client."""
        client = LedgerClient(self.layout, worker=worker, clock=CLOCK)
        await client.start()
        try:
            yield client
        finally:
            await client.close()

    async def key(self, client: LedgerClient, budget: str | None, **more: Any) -> tuple[KeyCreated, Principal]:
        """A key on a model that costs one nano-unit per output token."""
        await client.command(SetPrice(model="m", rates={"output": "0.001"}))
        made = await client.command(CreateKey(project="p", budget=budget, **more))
        assert isinstance(made, KeyCreated), made
        principal = await client.authenticate(made.key)
        assert isinstance(principal, Principal), principal
        return made, principal

    def admission(self, principal: Principal, output: int, **more: Any) -> Admission:
        """An admission of exactly so many output tokens."""
        return Admission(
            request_id=self.ids.request(), principal=principal, model="m", task="chat", bound=Usage(),
            least_output=output, most_output=output, **more,
        )  # fmt: skip

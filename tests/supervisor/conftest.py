"""A supervisor over fake children: real processes, pipes, locks and signals, without models or a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import psutil
import pytest
from headgate_gateway.settings import Model, Server, Settings
from headgate_gateway.supervisor.status import ChildStatus, Status
from headgate_gateway.supervisor.supervisor import Supervisor

FAKE = str(Path(__file__).parent / "fake_child.py")
ENTRIES = {"ledger": (FAKE, "ledger"), "worker": (FAKE, "worker"), "engine": (FAKE, "engine")}


def local(model_id: str, **options: object) -> Model:
    return Model.model_validate({"id": model_id, "task": "chat", "backend": "echo", **options})


def settings_in(folder: Path, *models: Model, workers: int = 2) -> Settings:
    server = Server(port=0, data_dir=folder / "data", workers=workers, drain_s=2.0)
    return Settings(server=server, models=models or (local("a"),))


class House:
    """A running supervisor and what it said."""

    local = staticmethod(local)
    settings_in = staticmethod(settings_in)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.next_settings: Callable[[], Settings] = lambda: settings
        self.status: Status | None = None
        self.lines: list[str] = []
        self.supervisor = Supervisor(
            settings,
            reread=lambda: self.next_settings(),
            write_line=lambda program, line: self.lines.append(f"{program.name}: {line}"),
            random=Random(1),
            on_status=self._note,
            entries=ENTRIES,
        )
        self.task: asyncio.Task[None] | None = None

    def _note(self, status: Status) -> None:
        self.status = status

    def start(self) -> None:
        self.task = asyncio.create_task(self.supervisor.run())

    async def until(self, condition: Callable[[Status], bool]) -> Status:
        """Wait for a status; the supervisor's own failure comes out here."""
        assert self.task is not None
        while self.status is None or not condition(self.status):
            if self.task.done():
                await self.task
                raise AssertionError(f"the supervisor ended; last status {self.status}")
            await asyncio.sleep(0.01)
        return self.status

    async def serving(self) -> Status:
        return await self.until(lambda s: s.phase == "serving" and all(c.state == "ready" for c in s.children))

    def child(self, name: str) -> ChildStatus:
        assert self.status is not None
        return next(child for child in self.status.children if child.name == name)

    async def stop(self) -> None:
        assert self.task is not None
        self.supervisor.stop()
        await self.task


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
async def house(settings: Settings) -> AsyncIterator[House]:
    """Not started yet; whatever it leaves behind is an error."""
    house = House(settings)
    yield house
    if house.task is not None and not house.task.done():
        house.supervisor.stop()
        house.supervisor.stop()
        await asyncio.gather(house.task, return_exceptions=True)
    left = [child for child in psutil.Process().children(recursive=True) if FAKE in child.cmdline()]
    assert not left, f"children were left behind: {left}"

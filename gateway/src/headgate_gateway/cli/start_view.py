"""What `headgate serve` shows: progress while models load, then where everything is; the children's output."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from headgate_gateway.settings import Settings
from headgate_gateway.supervisor.data_folder import admin_key_place
from headgate_gateway.supervisor.programs import Program
from headgate_gateway.supervisor.status import ChildStatus, Status
from headgate_gateway.telemetry.lines import LineWriter

QUICKSTART_PROJECT: Final = "quickstart"
WIDE: Final = 160
"""Columns of the table where nobody's terminal says how many there are."""
_LEVELS: Final = frozenset({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"})
_COLOURS: Final = {"ready": "green", "failed": "red", "restarting": "red"}


class _Screen(Console):
    """One whose broken pipe is an error like others; rich's ends the program."""

    def on_broken_pipe(self) -> None:
        """See rich."""
        raise BrokenPipeError


class StartView:
    """Follows a supervisor's status until every model is ready or has failed, then prints the table once.

    Args:
        settings: What is served.
        config: The config file; None for the echo model that `serve` starts without one.
    """

    def __init__(self, settings: Settings, *, config: Path | None) -> None:
        self._settings = settings
        self._config = config
        self._console = _Screen(width=None if sys.stdout.isatty() else WIDE)
        self._lines = LineWriter()
        self._as_text = settings.log.format == "text"
        self._key: str | None = None
        self._serving = False
        self._shown = False
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[what]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> StartView:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._lines.close()

    def write_line(self, program: Program, line: str) -> None:
        """One line of a child's output, into the one log stream.

        Our own processes log in the right form already; what libraries print in an engine, or an interpreter in
        its last breath, is marked with the child's name.
        """
        if self._as_text:
            name = f"engine {program.name}" if program.kind == "engine" else program.name
            self._lines.write(f"{name} | {line}\n" if program.raw else f"{line}\n")
        elif line.startswith("{") and (_is_document(line) if program.raw else line.endswith("}")):
            self._lines.write(f"{line}\n")
        else:
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            level, event = _level(line)
            entry = {"event": event, "level": level, "process": program.name, "timestamp": now}
            self._lines.write(json.dumps(entry, ensure_ascii=False) + "\n")

    async def serving(self) -> None:
        """Everything was started: make the first key where nobody made a config."""
        if self._config is None:
            from headgate_gateway.cli.administration import create_first_key

            self._key = await create_first_key(self._settings, QUICKSTART_PROJECT)
        self._serving = True

    def changed(self, status: Status) -> None:
        """Something of a child changed. That nobody reads stdout any more is no reason to stop."""
        if self._shown or status.phase == "stopping":
            return
        try:
            self._follow(status)
        except OSError:
            self._shown = True
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())

    def _follow(self, status: Status) -> None:
        for engine in status.engines:
            self._show_progress(engine)
        settled = all(engine.state in ("ready", "failed") or engine.restarts for engine in status.engines)
        if self._serving and settled:
            self._shown = True
            self._progress.stop()
            self._show(status)

    def _show_progress(self, engine: ChildStatus) -> None:
        if engine.name not in self._tasks:
            self._tasks[engine.name] = self._progress.add_task(engine.name, total=1.0, what="")
        self._progress.update(
            self._tasks[engine.name], completed=engine.fraction, what=engine.detail or engine.state
        )

    def _show(self, status: Status) -> None:
        facts = {
            "address": status.address,
            **({"admin api": status.admin_address} if status.admin_address else {}),
            "admin key": admin_key_place(self._settings.layout),
            "config": str(self._config) if self._config else "none: write one with `headgate init`",
        }
        for name, fact in facts.items():
            self._say(f"{name:<10} {fact}")
        models = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("model", "task", "device", "state", "detail"):
            models.add_column(column, overflow="fold")
        for model_id, task, device, state, detail in self._models(status):
            models.add_row(model_id, task, device, Text(state, style=_COLOURS.get(state, "")), Text(detail))
        self._console.print(models)
        if self._key is not None:
            self._say("A key for a first try:\n")
            self._say(_curl(status.address, self._key))
        self._console.file.flush()

    def _say(self, line: str) -> None:
        """A line as it is: people copy paths and keys from it."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _models(self, status: Status) -> list[tuple[str, str, str, str, str]]:
        rows: list[tuple[str, str, str, str, str]] = []
        for model in self._settings.models:
            engines = [engine for engine in status.engines if engine.model == model.id]
            rows += [
                (
                    engine.name if len(engines) > 1 else model.id,
                    model.task,
                    engine.device,
                    engine.state,
                    engine.detail,
                )
                for engine in engines
            ]
            if model.targets:
                places = ", ".join(target.base_url or target.model or target.backend for target in model.targets)
                rows.append((model.id, model.task, "remote", "ready", places))
        return rows


def _level(line: str) -> tuple[str, str]:
    """The level that a line of `logging` begins with, and the rest of it."""
    word, _, rest = line.partition(" ")
    return (word.lower(), rest) if word in _LEVELS else ("info", line)


def _is_document(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _curl(address: str, key: str) -> str:
    body = '{"model": "echo", "messages": [{"role": "user", "content": "Hello, gate!"}]}'
    return (
        f"  export HEADGATE_API_KEY={key}\n"
        f'  curl {address}/v1/chat/completions -H "Authorization: Bearer $HEADGATE_API_KEY" \\\n'
        f"    -H 'content-type: application/json' -d '{body}'\n"
    )

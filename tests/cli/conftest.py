"""The real command, and a real gateway that it starts: ledger, engine and workers as a user would have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deployment import Gateway, run


@pytest.fixture(scope="session")
def headgate() -> Callable[..., str]:
    return run


@pytest.fixture
def headgate_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs commands as `headgate` does, in this process: for tests of many commands."""
    from headgate_gateway.cli.application import application
    from typer.testing import CliRunner

    def here(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
        monkeypatch.chdir(folder)
        done = CliRunner().invoke(application, arguments, env=environment)
        assert done.exit_code == code, f"exit code {done.exit_code}: {done.output} {done.exception!r}"
        return done.stdout if code == 0 else done.output

    for name in os.environ:
        if name.startswith("HEADGATE_"):
            monkeypatch.delenv(name)
    return here


@pytest.fixture(params=["sqlite", "postgresql"])
def folder_of_either_store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty folder, and one with a config whose store is a migrated database."""
    if request.param == "postgresql":
        url = request.getfixturevalue("database")
        model = '[[models]]\nid = "echo"\ntask = "chat"\nbackend = "echo"\n'
        (tmp_path / "headgate.toml").write_text(f'[store]\nurl = "{url}"\n{model}')
    return tmp_path


@pytest.fixture
def serve() -> Iterator[Callable[..., Gateway]]:
    started: list[Gateway] = []

    def start(folder: Path, *arguments: str) -> Gateway:
        gateway = Gateway(folder)
        started.append(gateway)
        return gateway.begin("--port", "0", *arguments)

    yield start
    for gateway in started:
        gateway.stop()

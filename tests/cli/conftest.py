"""A real gateway, started by the real command: ledger, engine and workers as a user would have them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

HEADGATE = [sys.executable, "-m", "headgate_gateway.cli"]
PATIENCE_S = 60.0


class Gateway:
    """`headgate serve` in a folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._out = (folder / "out").open("w+")
        self._err = (folder / "err").open("w+")
        command = [*HEADGATE, "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, cwd=folder, stdout=self._out, stderr=self._err, env=clean())
        self.address = ""

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def wait(self, pattern: str = r"admin key[\s\S]*model ") -> Gateway:
        """Until the start table is there."""
        self.until(lambda: re.search(pattern, self.out))
        self.address = re.search(r"address +(\S+)", self.out)[1]  # type: ignore[index]
        return self

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert self.process.poll() is None, f"it ended: {self.out} {self.err}"
            assert time.monotonic() < deadline, f"never happened: {self.out} {self.err}"
            time.sleep(0.02)
        return found

    def status(self) -> dict[str, Any]:
        from headgate_gateway.layout import Layout

        try:
            document: dict[str, Any] = json.loads(Layout.of(self.folder / ".headgate").status.read_bytes())
        except FileNotFoundError:
            return {"children": []}
        return document

    def child(self, name: str) -> dict[str, Any]:
        return next((c for c in self.status()["children"] if c["name"] == name), {})

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ask(
        self, key: str, text: str = "Hello, gate!", model: str = "echo", tags: str = ""
    ) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "headgate-tags": tags}
        try:
            with urlopen(Request(f"{self.address}/v1/chat/completions", body, headers), timeout=30) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(40)
        self._out.close()
        self._err.close()
        return code


def clean(**extra: str) -> dict[str, str]:
    """Our environment without what would change a command's mind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADGATE_")}
    return {**kept, **extra}


def run(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run a command; its stdout."""
    done = subprocess.run(
        [*HEADGATE, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=clean(**environment)
    )
    assert done.returncode == code, f"exit code {done.returncode}: {done.stdout} {done.stderr}"
    return done.stdout if code == 0 else done.stdout + done.stderr


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
        gateway = Gateway(folder, *arguments)
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        gateway.stop()

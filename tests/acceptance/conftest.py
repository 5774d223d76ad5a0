"""A whole gateway, as an operator starts it: `headgate serve` with its real children on a real port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from headgate_gateway.layout import Layout

from benchmarks.ports import free_port

ECHO = """
[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = { input = "1", output = "1" }
"""


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Poll until `condition` gives something true; the poll interval is not a test of anything."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen in {timeout_s} s")


class Gateway:
    """One deployment: its config, its process tree, its command line."""

    def __init__(self, folder: Path, config: str, *, workers: int = 1) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = folder / "headgate.toml"
        self.config.write_text(
            f'[server]\nport = {self.port}\nworkers = {workers}\ndata_dir = "data"\ndrain_s = 5\n{config}'
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "serve.log"
        self.environment: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def layout(self) -> Layout:
        return Layout.of(self.folder / "data")

    @property
    def admin_key(self) -> str:
        return self.layout.admin_key.read_text().strip()

    def start(self, *, limits: Callable[[], None] | None = None) -> None:
        """Start it; `limits` is called in its process before."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "headgate_gateway.cli", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")} | self.environment,
                preexec_fn=limits,
            )
        wait_for(self.is_ready, "readiness")

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=40)
        self.process = None
        return code

    def kill_everything(self) -> None:
        if self.process is not None:
            for process in [*self.tree(), psutil.Process(self.process.pid)]:
                process.kill()
            self.process.wait(timeout=10)
            self.process = None

    def tree(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def children(self, part: str) -> list[psutil.Process]:
        """The children whose command line names `part`: a module like `headgate_engine`."""
        found = []
        for process in self.tree():
            try:
                if any(part in word for word in process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def command(self, *words: str, code: int = 0) -> Any:
        """Run `headgate ... --json` against this deployment and return its document."""
        done = subprocess.run(
            [sys.executable, "-m", "headgate_gateway.cli", *words, "--config", str(self.config), "--json"],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**os.environ, **self.environment},
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def key(self, *words: str) -> str:
        created: str = self.command("keys", "create", "--project", "tests", *words)["key"]
        return created

    def audit(self) -> dict[str, Any]:
        report: dict[str, Any] = self.command("audit")
        return report


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Starts gateways: `gateway(config, workers=2)`; whatever is still running at the end is killed."""
    started: list[Gateway] = []

    def start(config: str = ECHO, *, workers: int = 1, wait: bool = True) -> Gateway:
        folder = tmp_path / f"gateway{len(started)}"
        folder.mkdir()
        made = Gateway(folder, config, workers=workers)
        started.append(made)
        if wait:
            made.start()
        return made

    yield start
    for made in started:
        made.kill_everything()

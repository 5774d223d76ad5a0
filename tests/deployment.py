"""A whole gateway, as an operator starts it: `headgate serve` with its real children on a real port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil
from headgate_gateway.layout import Layout

from benchmarks.ports import free_port

HEADGATE = [sys.executable, "-m", "headgate_gateway.cli"]
PATIENCE_S = 60.0

ECHO = """
[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = { input = "1", output = "2" }
"""
SLOW = """
[[models]]
id = "slow"
task = "chat"
backend = "echo"
options = { delay_ms = 20 }
price = { input = "1", output = "2" }
"""


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Poll until `condition` gives something true; the poll interval is not a test of anything."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen in {timeout_s} s")


def clean(**extra: str) -> dict[str, str]:
    """Our environment without what would change a command's mind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADGATE_")}
    return {**kept, **extra}


def run(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run a command; its stdout, and stderr as well where it is to fail."""
    done = subprocess.run(
        [*HEADGATE, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=clean(**environment)
    )
    assert done.returncode == code, f"exit code {done.returncode}: {done.stdout} {done.stderr}"
    return done.stdout if code == 0 else done.stdout + done.stderr


class Gateway:
    """One deployment: a folder, its process tree, its command line.

    Args:
        folder: Where it runs.
        config: Its models and the like, behind a server on a port of its own; None serves what lies there.
        workers: How many.
    """

    url = ""

    def __init__(self, folder: Path, config: str | None = None, *, workers: int = 1) -> None:
        self.folder = folder
        self.config = folder / "headgate.toml"
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._data = folder / ".headgate"
        if config is not None:
            self._data = folder / "data"
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            server = f'[server]\nport = {port}\nworkers = {workers}\ndata_dir = "data"\ndrain_s = 5\n'
            self.config.write_text(server + config)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was never started"
        return self._process

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def layout(self) -> Layout:
        return Layout.of(self._data)

    @property
    def admin_key(self) -> str:
        return self.layout.admin_key.read_text().strip()

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def begin(self, *arguments: str, limits: Callable[[], None] | None = None) -> Self:
        """Start it and wait for nothing; `limits` is called in its process before."""
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            self._process = subprocess.Popen(
                [*HEADGATE, "serve", *arguments],
                stdout=out,
                stderr=err,
                cwd=self.folder,
                env=clean(**self.environment),
                preexec_fn=limits,
            )
        return self

    def start(self, *, limits: Callable[[], None] | None = None) -> Self:
        """Start it and wait until it serves."""
        self.begin("--config", str(self.config), limits=limits)
        self.until(self.is_ready)
        return self

    def wait(self, pattern: str = r"admin key[\s\S]*model ") -> Self:
        """Until the start table is there; it says the address."""
        self.until(lambda: re.search(pattern, self.out))
        address = re.search(r"address +(\S+)", self.out)
        assert address is not None
        self.url = address[1]
        return self

    def until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once it is true, while the gateway lives."""

        def seen() -> Any:
            found = condition()
            assert found or self.process.poll() is None, f"it ended: {self.out} {self.err}"
            return found

        try:
            return wait_for(seen, "what is waited for")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.out} {self.err}") from None

    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def status(self) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(self.layout.status.read_bytes())
        except FileNotFoundError:
            return {"children": []}
        return document

    def is_settled(self) -> bool:
        """Whether its supervisor says that all of it is ready: a worker says so before the others are."""
        status = self.status()
        return status.get("phase") == "serving" and all(c["state"] == "ready" for c in status["children"])

    def child(self, name: str) -> dict[str, Any]:
        return next((c for c in self.status()["children"] if c["name"] == name), {})

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def children(self, part: str) -> list[psutil.Process]:
        """The processes whose command line names `part`: a module like `headgate_engine`."""
        found = []
        for process in self.tree():
            try:
                if any(part in word for word in process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def ask(
        self, key: str, text: str = "Hello, gate!", model: str = "echo", **fields: Any
    ) -> tuple[int, dict[str, Any]]:
        """Ask a chat model; status and document."""
        messages = [{"role": "user", "content": text}]
        return self._post("/v1/chat/completions", key, model=model, messages=messages, **fields)

    def key(self, **fields: Any) -> str:
        """A fresh key."""
        status, made = self._post("/admin/v1/keys", self.admin_key, **{"project": "tests", **fields})
        assert status < 300, made
        return str(made["key"])

    def admin(self, path: str) -> Any:
        """What the admin API answers there: cheaper to ask again and again than a command."""
        asked = Request(f"{self.url}/admin/v1/{path}", headers={"x-api-key": self.admin_key})
        with urlopen(asked, timeout=30) as answer:
            return json.load(answer)

    def _post(self, path: str, key: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        try:
            with urlopen(Request(self.url + path, json.dumps(fields).encode(), headers), timeout=30) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    def command(self, *words: str) -> Any:
        """Run `headgate ... --json` against this deployment and return its document."""
        return json.loads(run(self.folder, *words, "--config", str(self.config), "--json", **self.environment))

    def audit(self) -> dict[str, Any]:
        report: dict[str, Any] = self.command("audit")
        return report

    def stop(self) -> int:
        """End it as an operator does; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)

    def close(self) -> None:
        """End it, and whatever of it would not end."""
        tree = self.tree() if self.process.poll() is None else []
        try:
            self.stop()
        finally:
            for process in tree:
                if process.is_running():
                    process.kill()

    def kill_everything(self) -> None:
        """End it as a power cut does."""
        if self._process is not None and self._process.poll() is None:
            for process in [*self.tree(), psutil.Process(self._process.pid)]:
                process.kill()
            self._process.wait(timeout=10)

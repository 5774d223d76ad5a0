"""One `headgate serve` in a folder of its own: started, asked, killed and read as an operator would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped,unused-ignore]
from headgate_gateway.config_file import read_config
from headgate_gateway.settings import Settings

from benchmarks.money.subject import family, kill_all, wait_for
from benchmarks.ports import free_port

COMMAND: Final = (sys.executable, "-m", "headgate_gateway.cli")


class Node:
    """A gateway's process tree and data.

    Args:
        folder: Where config, data and log go; made here.
        server: The config's table `[server]`, but for port and data folder.
        rest: The rest of the config.
    """

    def __init__(self, folder: Path, server: str, rest: str) -> None:
        folder.mkdir()
        self.folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "serve.log"
        self._log.touch()
        config = f'[server]\nport = {self._port}\ndata_dir = "data"\n{server}\n{rest}'
        (folder / "headgate.toml").write_text(config)

    @property
    def settings(self) -> Settings:
        """What its config says."""
        return read_config(self.folder / "headgate.toml").settings

    def command(self, *words: str) -> Any:
        """Run `headgate ... --json` and return its document.

        Raises:
            RuntimeError: It failed.
        """
        done = subprocess.run(
            [*COMMAND, *words, "--config", "headgate.toml", "--json"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode not in (0, 1) or not done.stdout:
            raise RuntimeError(f"headgate {' '.join(words)}: exit {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def order(self, path: str, **document: Any) -> Any:
        """`POST /admin/v1/{path}` as the administrator; returns the answer, None where none came.

        Raises:
            RuntimeError: It was refused.
        """
        key = (self.folder / "data" / "admin.key").read_text().strip()
        asked = urllib.request.Request(
            f"{self.url}/admin/v1/{path}",
            json.dumps(document).encode(),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise RuntimeError(f"{path}: {error.code} {error.read()!r}") from error
        except (OSError, ValueError):
            pass
        return None

    def launch(self, **environment: str) -> None:
        """Start it and do not wait; `environment` is added to that of the gateway."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "serve", "--config", "headgate.toml"],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def wait(self) -> None:
        """Wait until it serves."""
        wait_for(self._ready, "readiness")

    def _ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"headgate ended: {self.log()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def processes(self) -> list[psutil.Process]:
        """Its tree."""
        return [] if self._process is None else family(self._process.pid)

    def reload(self) -> bool:
        """SIGHUP; False where nothing runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)
        return self._process is not None

    def stop(self) -> None:
        """SIGTERM; a tree that does not end by it is killed, and that is an error."""
        if self._process is None:
            return
        processes = self.processes()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            kill_all(processes)
            self._process.wait()
            raise
        finally:
            self._process = None

    def kill(self) -> None:
        """`kill -9` of all of it."""
        if self._process is not None:
            kill_all(self.processes())
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What it said so far."""
        return self._log.read_text()

    def deaths(self) -> list[str]:
        """Children that ended by SIGKILL so far, as the supervisor's log names them: `ledger`, `worker 1`."""
        lines = self.log().splitlines()
        died = [str(json.loads(line)["child"]) for line in lines if '"how": "SIGKILL"' in line]
        # The supervisor gives up when its first ledger does not come up.
        return [*died, *(["ledger"] * sum("ledger ended at its start (SIGKILL)" in line for line in lines))]

"""`headgate serve` on a port of its own, for tests of the client against the real thing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from headgate import Headgate

from benchmarks.ports import free_port
from tests.acceptance.conftest import wait_for

SERVER = """
[server]
port = {port}
workers = 2
data_dir = "data"
drain_s = 5

"""

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


class Gateway:
    """`headgate serve` in a folder of its own."""

    def __init__(self, folder: Path, models: str) -> None:
        port = free_port()
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.config = folder / "headgate.toml"
        self.config.write_text(SERVER.format(port=port) + models)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
        self.log = (folder / "serve.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headgate_gateway.cli", "serve", "--config", str(self.config)],
            cwd=folder,
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        wait_for(self.is_ready, "readiness")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "serve.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    @property
    def admin_key(self) -> str:
        return (self.folder / "data" / "admin.key").read_text().strip()

    def key(self, project: str = "sdk", **fields: Any) -> str:
        with Headgate(api_key=self.admin_key, base_url=self.url) as client:
            return client.admin.keys.create(project=project, **fields).key

    def close(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            for child in children:
                if child.is_running():
                    child.kill()
            self.log.close()

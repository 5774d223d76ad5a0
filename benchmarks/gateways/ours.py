"""Headgate as an operator starts it: a key under a budget and rates; workers and ledger on cores of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gateways.machine import Cores, pin
from benchmarks.ports import free_port

PATIENCE_S = 60.0
CONFIG = """
[server]
port = {port}
workers = {workers}
data_dir = "data"

[[models]]
id = "gpt-4o-mini"
task = "chat"
price = {{ input = "0.15", output = "0.60" }}
[[models.targets]]
backend = "openai"
model = "fixed"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "env:BENCHMARK_PROVIDER_KEY"
"""
LIMITS = ("--budget", "100000/month", "--rpm", "100000000", "--tpm", "100000000000", "--concurrency", "100000")


class Deployment:
    """A gateway that serves.

    Attributes:
        url: Its address.
        key: A key under a budget, both rates and a limit of concurrency.
        workers: Process ids.
        ledger: Process id.
    """

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._process = process
        self.url = f"http://127.0.0.1:{port}"
        self._wait_until_ready()
        self.workers = self._children("headgate_gateway.worker")
        (self.ledger,) = self._children("headgate_gateway.ledger")
        self.key: str = self.command("keys", "create", "--project", "benchmark", *LIMITS)["key"]

    def command(self, *words: str) -> Any:
        """Run `headgate … --json` against it."""
        done = subprocess.run(
            [sys.executable, "-m", "headgate_gateway.cli", *words, "--config", "headgate.toml", "--json"],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if not done.stdout:
            raise RuntimeError(f"headgate {' '.join(words)}: {done.stderr}")
        return json.loads(done.stdout)

    def audit(self) -> bool:
        """Whether every balance re-derives."""
        return bool(self.command("audit")["ok"])

    def _children(self, module: str) -> tuple[int, ...]:
        tree = psutil.Process(self._process.pid).children(recursive=True)
        return tuple(child.pid for child in tree if module in child.cmdline())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        log = (self._folder / "serve.log").read_text(errors="replace")
        raise RuntimeError(f"the gateway does not serve:\n{log[-2000:]}")


@contextmanager
def headgate(folder: Path, upstream: int, cores: Cores) -> Iterator[Deployment]:
    """Start it with a worker for each of `cores.workers`, in front of the provider at the port `upstream`."""
    folder.mkdir()
    port = free_port()
    config = CONFIG.format(port=port, workers=len(cores.workers), upstream=upstream)
    (folder / "headgate.toml").write_text(config)
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "headgate_gateway.cli", "serve", "--config", "headgate.toml"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "BENCHMARK_PROVIDER_KEY": "sk-benchmark"},
        )
    try:
        deployment = Deployment(folder, port, process)
        for worker, core in zip(deployment.workers, cores.workers, strict=True):
            pin(worker, core)
        pin(deployment.ledger, cores.ledger)
        yield deployment
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)

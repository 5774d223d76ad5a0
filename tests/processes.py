"""A small gateway of real processes: ledger, workers, echo engines, each started by itself.

A test may end any of them and start it again; a whole gateway under its supervisor is `deployment`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import msgspec
from headgate_gateway.models.specs import engine_spec
from headgate_gateway.settings import Model, Settings, write_snapshot
from headgate_gateway.supervisor.price_sync import sync_prices

from tests.deployment import wait_for

ADMIN_KEY = "admin-key-of-the-tests"


@dataclass
class Gateway:
    """Running processes on one data folder."""

    settings: Settings
    url: str
    folder: Path
    listener: socket.socket
    alive_fd: int
    parent_fd: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *argv: str, inherited: tuple[int, ...] = (), ready: bool = True) -> None:
        """Start a child and, if it announces itself, wait for that."""
        name = name.replace("/", "-")
        read_fd, write_fd = os.pipe()
        extra = ["--ready-fd", str(write_fd)] if ready else []
        environment = {
            **os.environ,
            "HEADGATE_ADMIN_KEY": ADMIN_KEY,
            "PROMETHEUS_MULTIPROC_DIR": str(self.settings.layout.metrics),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *argv, "--parent-fd", str(self.parent_fd), *extra],
                pass_fds=(self.parent_fd, write_fd, *inherited),
                start_new_session=True,
                env=environment,
                stdout=log,
                stderr=log,
            )
        os.close(write_fd)
        self.processes[name] = process
        if ready:
            os.set_blocking(read_fd, False)
            try:
                wait_for(lambda: self._announced(name, read_fd), f"{name} is ready")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log(name)}") from None
        os.close(read_fd)

    def _announced(self, name: str, read_fd: int) -> bool:
        code = self.processes[name].poll()
        assert code is None, f"{name} ended with {code}:\n{self.log(name)}"
        try:
            return bool(os.read(read_fd, 100))
        except BlockingIOError:
            return False

    def start_ledger(self) -> None:
        """Start the ledger."""
        self.start("ledger", "headgate_gateway.ledger", "--settings", str(self.settings.layout.settings))

    def start_worker(self, number: int = 0) -> None:
        """Start a worker on the shared socket."""
        fd = self.listener.fileno()
        self.start(
            f"worker-{number}",
            *("headgate_gateway.worker", "--settings", str(self.settings.layout.settings)),
            *("--listen-fd", str(fd), "--worker", str(number)),
            inherited=(fd,),
        )

    def start_engine(self, model: Model) -> None:
        """Start the engine of a local model."""
        layout, slot = self.settings.layout, self.settings.slot(model.id)
        layout.engine_spec(slot, 0).write_bytes(msgspec.json.encode(engine_spec(model)))
        self.start(
            f"engine-{model.id}",
            *("headgate_engine", "--spec", str(layout.engine_spec(slot, 0))),
            *("--socket", str(layout.engine_socket(slot, 0))),
            ready=False,
        )

    def log(self, name: str) -> str:
        """What a child wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal a child and wait for its end."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(30)

    def close(self) -> None:
        """End everything, as the death of a supervisor does."""
        os.close(self.alive_fd)
        os.close(self.parent_fd)
        self.listener.close()
        for name, process in self.processes.items():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"{name} did not end with its parent:\n{self.log(name)}") from None
        shutil.rmtree(self.settings.layout.run_dir, ignore_errors=True)

    def admin(self, method: str, path: str, **more: Any) -> Any:
        """An administrative call; its document."""
        answer = httpx.request(
            method, f"{self.url}/admin/v1/{path}", headers={"x-api-key": ADMIN_KEY}, timeout=30, **more
        )
        assert answer.status_code < 300, answer.text
        return answer.json()

    def key(self, **more: Any) -> str:
        """A fresh key."""
        made = self.admin("POST", "keys", json={"project": "tests", **more})
        return str(made["key"])

    def client(self, key: str | None = None, **more: Any) -> httpx.Client:
        """A client with a key."""
        credentials = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=credentials, timeout=30, **more)


@contextlib.contextmanager
def running(settings: dict[str, Any], *, workers: int = 1, wait: bool = True) -> Iterator[Gateway]:
    """A gateway with these settings on a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="hg") as folder:
        server = {"data_dir": str(Path(folder) / "data"), "drain_s": 5, **settings.pop("server", {})}
        checked = Settings.model_validate({"server": server, **settings})
        layout = checked.layout
        layout.data_dir.mkdir(mode=0o700)
        layout.metrics.mkdir(parents=True, exist_ok=True)
        layout.run_dir.chmod(0o700)
        write_snapshot(checked, layout.settings)
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        parent_fd, alive_fd = os.pipe()
        gateway = Gateway(
            settings=checked,
            url=f"http://127.0.0.1:{listener.getsockname()[1]}",
            folder=Path(folder),
            listener=listener,
            alive_fd=alive_fd,
            parent_fd=parent_fd,
        )
        try:
            gateway.start_ledger()
            asyncio.run(sync_prices(checked))
            for model in checked.models:
                if model.backend is not None:
                    gateway.start_engine(model)
            for number in range(workers):
                gateway.start_worker(number)
            if wait:
                wait_for(lambda: httpx.get(f"{gateway.url}/health/ready").status_code == 200, "all models ready")
            yield gateway
        finally:
            gateway.close()

"""Headgate under test: a deployment in a folder of its own, started and asked as an operator would."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from headgate_gateway.admin.commands import CreateKey, KeyCreated, SetBudget
from headgate_gateway.admin.sqlite_usage import SqliteUsage
from headgate_gateway.admin.usage import PAGE, UsageRecord
from headgate_gateway.config_file import read_config
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.embedded import momentary_ledger

from benchmarks.money.compare import Record, Window
from benchmarks.money.plan import DRAINED, FAR, NEAR, SECOND, WAIVED
from benchmarks.money.subject import Victim, family, free_port, kill_all, named, wait_for

COMMAND: Final = (sys.executable, "-m", "headgate_gateway.cli")
MODULES: Final[dict[str, str]] = {
    "worker": "headgate_gateway.worker",
    "ledger": "headgate_gateway.ledger",
    "engine": "headgate_engine",
}
SETTLE_S: Final = 40.0

CONFIG: Final = """
[server]
port = {port}
workers = {workers}
data_dir = "data"
drain_s = 5

[[models]]
id = "{near}"
task = "chat"
backend = "echo"
options = {{ delay_ms = 4 }}
price = {{ input = "0.37", output = "1.13" }}

"""

FAR_CONFIG: Final = """
[[models]]
id = "{model}"
task = "chat"
timeout_s = 3
disconnect = "{policy}"
price = {{ input = "0.37", output = "1.13" }}
"""

TARGET: Final = """
[[models.targets]]
backend = "openai"
model = "truth"
base_url = "{address}/v1"
priority = {priority}
"""

POLICIES: Final = {FAR: "delivered", DRAINED: "drain", WAIVED: "waive", SECOND: "delivered"}
DEAD: Final = "http://127.0.0.1:9"
"""Nobody listens on the port of `discard`."""


class Headgate:
    """See `Subject`.

    Args:
        folder: Where config, data and log go.
        upstream: Address of the truthful upstream.
        workers: Worker processes.
        draw: Chooses the process that is killed.
        tight_budget: AMOUNT of a key's and of a project's budget that the load shall use up.
        ample: How many keys have more than enough.
    """

    name = "headgate"
    near = True
    audits = True

    def __init__(
        self,
        folder: Path,
        upstream: str,
        *,
        workers: int = 2,
        draw: random.Random,
        tight_budget: str = "0.004",
        ample: int = 6,
    ) -> None:
        self.workers = workers
        self._folder = folder
        self._draw = draw
        self._layout = Layout.of(folder / "data")
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "serve.log"
        self._log.touch()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = CONFIG.format(port=port, workers=workers, near=NEAR)
        for model, policy in POLICIES.items():
            targets = [DEAD, upstream] if model == SECOND else [upstream]
            config += FAR_CONFIG.format(model=model, policy=policy)
            config += "".join(TARGET.format(address=to, priority=n) for n, to in enumerate(targets))
        (folder / "headgate.toml").write_text(config)
        self._ids: list[str] = []
        self._projects: list[str] = []
        self.keys: list[str] = []
        self.tight = 3
        asyncio.run(self._make_accounts(ample, tight_budget))

    async def _make_accounts(self, ample: int, tight_budget: str) -> None:
        settings = read_config(self._folder / "headgate.toml").settings
        wanted = [CreateKey(project=f"ample{number % 2}", budget="1000/month") for number in range(ample)]
        wanted.append(CreateKey(project="tight-key", budget=f"{tight_budget}/total"))
        wanted += [CreateKey(project="tight-project")] * 2
        async with momentary_ledger(settings, self._layout) as admin:
            for create in wanted:
                made = await admin.command(create)
                assert isinstance(made, KeyCreated)
                self.keys.append(made.key)
                self._ids.append(made.id)
                self._projects.append(made.project)
            await admin.command(SetBudget(account="tight-project", amount=tight_budget, window="total"))
            await admin.command(SetBudget(account="default", amount="5000", window="month"))

    def command(self, *words: str) -> Any:
        """Run `headgate ... --json` and return its document.

        Raises:
            RuntimeError: It failed.
        """
        done = subprocess.run(
            [*COMMAND, *words, "--config", "headgate.toml", "--json"],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode not in (0, 1) or not done.stdout:
            raise RuntimeError(f"headgate {' '.join(words)}: exit {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def start(self) -> None:
        """See `Subject`."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until it serves."""
        wait_for(self._ready, "readiness")

    def launch(self, **environment: str) -> None:
        """Start it and do not wait; `environment` is added to that of the gateway."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "serve", "--config", "headgate.toml"],
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def _ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"headgate ended: {self.log()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self, victim: Victim) -> bool:
        """See `Subject`."""
        if self._process is None:
            return False
        processes = family(self._process.pid)
        if victim == "group":
            kill_all(processes)
            self._process.wait()
            self.start()
            return True
        if victim == "reload":
            self._process.send_signal(signal.SIGHUP)
            return True
        if victim == "restart":
            self.stop()
            self.start()
            return True
        found = named(processes, MODULES[victim])
        if not found:
            return False
        kill_all([self._draw.choice(found)])
        return True

    def stop(self) -> None:
        """See `Subject`."""
        if self._process is None:
            return
        processes = family(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            kill_all(processes)
            self._process.wait()
            raise
        finally:
            self._process = None

    def kill_everything(self) -> None:
        """`kill -9` of all there is, without a new start."""
        if self._process is not None:
            kill_all(family(self._process.pid))
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

    def settle(self) -> None:
        """See `Subject`. What stays held is found by `windows`."""
        try:
            wait_for(lambda: not any(a["in_flight"] for a in self._accounts()), "the end of it all", SETTLE_S)
        except TimeoutError:
            return

    def _accounts(self) -> list[dict[str, Any]]:
        accounts: list[dict[str, Any]] = self.command("accounts", "list")["accounts"]
        return accounts

    def windows(self) -> Sequence[Window]:
        """See `Subject`."""
        found = []
        for account in self._accounts():
            if account["kind"] == "key":
                paying = {number for number, id_ in enumerate(self._ids) if id_ == account["id"]}
            elif account["kind"] == "project":
                paying = {number for number, id_ in enumerate(self._projects) if id_ == account["id"]}
            else:
                paying = set(range(len(self.keys)))
            found += [
                Window(
                    name=f"{account['kind']} {account['name'] or account['id']}",
                    limit=_nano(budget["limit"]),
                    spent=_nano(budget["spent"]),
                    held=_nano(budget["held"]),
                    accounts=frozenset(paying),
                )
                for budget in account["budgets"]
            ]
        return found

    def records(self) -> Sequence[Record]:
        """See `Subject`."""
        return asyncio.run(self._records())

    async def _records(self) -> list[Record]:
        reader, found = SqliteUsage(self._layout), []
        after: int | None = 0
        while after is not None:
            page = await reader.records(after, PAGE)
            found += [_record(record) for record in page.records]
            after = page.after
        return found

    def audit(self) -> str | None:
        """See `Subject`."""
        report = self.command("audit")
        return None if report["ok"] else str(report["first_difference"])


def _record(record: UsageRecord) -> Record:
    return Record(
        request_id=record.request_id,
        operation=record.tags.get("op", ""),
        outcome=record.outcome,
        input=record.usage.prompt_tokens,
        output=record.usage.completion_tokens,
        cost=record.cost,
        billed=record.billed,
        held=record.held,
    )


def _nano(amount: str) -> int:
    return int(Decimal(amount) * 10**9)

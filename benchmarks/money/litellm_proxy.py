"""A LiteLLM proxy under test, from a virtual environment of its own.

It runs without its database, as `litellm --config` starts it, so it has neither keys nor budgets nor spend logs;
its records are what its own success callback is told, written to disk at once. With a database it needs Prisma,
whose client fetches a query engine from binaries.prisma.sh when it is generated and finds it in no package.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.money.compare import Record, Version, Window
from benchmarks.money.plan import FAR, PRICES, Payer
from benchmarks.money.subject import Victim, family, kill_all, wait_for
from benchmarks.ports import free_port
from benchmarks.truthful_upstream import Order

CONFIG: Final = """
model_list:
  - model_name: {far}
    litellm_params:
      model: openai/truth
      api_base: {upstream}/v1
      api_key: none
      timeout: 3
      allowed_openai_params: [user]
      input_cost_per_token: {input:.12f}
      output_cost_per_token: {output:.12f}
litellm_settings:
  callbacks: written.written
  num_retries: 0
general_settings:
  master_key: sk-money
"""

CALLBACK: Final = """
import json, os
from litellm.integrations.custom_logger import CustomLogger

class Written(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        usage = getattr(response_obj, "usage", None)
        line = {
            "id": getattr(response_obj, "id", ""),
            "user": (kwargs.get("optional_params") or {}).get("user") or kwargs.get("user") or "",
            "input": getattr(usage, "prompt_tokens", 0) or 0,
            "output": getattr(usage, "completion_tokens", 0) or 0,
            "cost": kwargs.get("response_cost") or 0,
        }
        with open(os.environ["WRITTEN_TO"], "a") as file:
            file.write(json.dumps(line) + "\\n")

written = Written()
"""


class LiteLLM:
    """See `Subject`.

    Args:
        folder: Where config, callback and records go.
        upstream: Address of the truthful upstream.
        environment: The virtual environment with `litellm[proxy]`.
    """

    name = "LiteLLM, no database"
    near = False
    audits = False
    tight = 0

    def __init__(self, folder: Path, upstream: str, environment: Path) -> None:
        self._folder = folder
        self._command = environment.resolve() / "bin" / "litellm"
        self._written = folder / "written.jsonl"
        self._written.touch()
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.urls = [self.url]
        self.payers: tuple[Payer, ...] = (Payer("all"),) * 6
        self.keys = ["sk-money" for _ in self.payers]
        (folder / "config.yaml").write_text(
            CONFIG.format(
                far=FAR,
                upstream=upstream,
                input=float(PRICES[FAR].input) / 1e6,
                output=float(PRICES[FAR].output) / 1e6,
            )
        )
        (folder / "written.py").write_text(CALLBACK)

    def start(self) -> None:
        """See `Subject`."""
        with (self._folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._command), "--config", "config.yaml", "--port", str(self._port)],
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "WRITTEN_TO": str(self._written), "NO_PROXY": "127.0.0.1"},
            )
        wait_for(self._ready, "readiness of LiteLLM")

    def _ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"litellm ended: {(self._folder / 'serve.log').read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/health/liveliness", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self, victim: Victim) -> bool:
        """See `Subject`. It is one process: whatever is to be killed, all of it is."""
        if victim not in ("worker", "ledger", "node", "group", "restart") or self._process is None:
            return False
        kill_all(family(self._process.pid))
        self._process.wait()
        self.start()
        return True

    def stop(self) -> None:
        """See `Subject`."""
        if self._process is None:
            return
        processes = family(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        kill_all(processes)
        self._process.wait()
        self._process = None

    def settle(self) -> None:
        """See `Subject`. Callbacks run after the answer; a few seconds are plenty."""
        seen: list[int] = []

        def quiet() -> bool:
            seen.append(self._written.stat().st_size)
            return len(seen) > 100 and seen[-1] == seen[-100]

        wait_for(quiet, "the last callback")

    def records(self) -> Sequence[Record]:
        """See `Subject`."""
        return [_record(json.loads(line)) for line in self._written.read_text().splitlines()]

    def windows(self) -> Sequence[Window]:
        """See `Subject`."""
        return ()

    def versions(self) -> Mapping[str, Version]:
        """See `Subject`."""
        return {}

    def audit(self) -> str | None:
        """See `Subject`."""
        return None


def _record(line: dict[str, Any]) -> Record:
    with contextlib.suppress(ValueError):
        operation = Order.parse(line["user"]).op
        return Record(line["id"], operation, "ok", line["input"], line["output"], round(line["cost"] * 1e9), True)
    return Record(line["id"], "", "ok", line["input"], line["output"], round(line["cost"] * 1e9), True)

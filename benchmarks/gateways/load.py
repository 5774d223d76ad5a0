"""wrk as the load: one thread, keep-alive, the same chat request again and again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateways.machine import cpu_seconds, memory_mb

REQUEST = json.dumps(
    {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": "Is the canal open, and where does the gate stand?"},
        ],
        "max_tokens": 64,
    }
)
_SCRIPT = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
wrk.headers["Content-Type"] = "application/json"
{headers}
done = function(summary, latency, requests)
  io.write(string.format(
    '\\nRESULT {{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"statuses":%d,"sockets":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""


@dataclass(frozen=True)
class Measured:
    """One run of the load.

    Attributes:
        connections: Open at once, one request in flight on each.
        requests_per_s: Answers with a 2xx status a second.
        p50_ms: Median time of an answer.
        p99_ms: Time that 99 of 100 answers keep.
        failures: Answers with another status, and broken connections.
        cpu_us: Processor time of the gateway's own processes (for ours: of its workers) per request.
        ledger_us: The same of our ledger.
        busy: Share of the wall clock that the gateway's processes (workers) computed; 1.0 is one whole core.
        memory_mb: Resident memory of those processes after the run.
    """

    connections: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int
    cpu_us: float | None = None
    ledger_us: float | None = None
    busy: float | None = None
    memory_mb: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def drive(
    url: str,
    headers: Mapping[str, str],
    folder: Path,
    *,
    core: int,
    connections: int,
    seconds: float,
    pids: tuple[int, ...] = (),
    ledger: tuple[int, ...] = (),
) -> Measured:
    """Load an address, after a second to warm up, and account for the processes behind it."""
    script = folder / "load.lua"
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    script.write_text(_SCRIPT.format(body=REQUEST, headers=lines))
    _wrk(url, script, core, connections, 1)
    before, ledger_before = cpu_seconds(pids), cpu_seconds(ledger)
    result = _wrk(url, script, core, connections, round(seconds))
    used, ledger_used = cpu_seconds(pids) - before, cpu_seconds(ledger) - ledger_before
    good = result["requests"] - result["statuses"]
    elapsed = result["duration_us"] / 1e6
    return Measured(
        connections=connections,
        requests_per_s=round(good / elapsed, 1),
        p50_ms=result["p50_us"] / 1000,
        p99_ms=result["p99_us"] / 1000,
        failures=result["statuses"] + result["sockets"],
        cpu_us=round(used / max(1, good) * 1e6, 1) if pids else None,
        ledger_us=round(ledger_used / max(1, good) * 1e6, 1) if ledger else None,
        busy=round(used / elapsed, 2) if pids else None,
        memory_mb=round(memory_mb(pids), 1) if pids else None,
    )


def _wrk(url: str, script: Path, core: int, connections: int, seconds: int) -> dict[str, Any]:
    done = subprocess.run(
        ["taskset", "-c", str(core), "wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s",
         "--timeout", "10s", "-s", str(script), url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return result

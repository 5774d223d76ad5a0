"""How many charges a gateway loses, doubles or gets wrong while its processes are killed at random.

`python -m benchmarks.money_errors [--store sqlite|postgresql|both] [--nodes 2] [--seconds 60 | --requests N]
[--seed 1] [--calm] [--crash-points] [--json] [--litellm VENV]`

A truthful upstream (`benchmarks.truthful_upstream`) answers whole and streamed, lies, stalls and resets;
clients ask, hang up, and try again with the same key; meanwhile workers, ledger, engines, nodes, the database's
server and the whole group are killed with SIGKILL, prices change and keys are rotated. Afterwards the gateway's
own audit runs, and three views are compared: what clients saw, what the upstream did, what the gateway recorded.
The table counts per 10,000 requests; the aim is a column of zeros.

PostgreSQL is a server of the benchmark's own, which `--nodes` gateways share. With `--litellm VENV` the same load
goes to a LiteLLM proxy of that virtual environment, in one more column: one process, no budgets, no database (see
its module), and its records are what its own success callback writes to disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Final

from benchmarks.money.clients import Load
from benchmarks.money.crashes import die_everywhere
from benchmarks.money.headgate import Headgate
from benchmarks.money.litellm_proxy import LiteLLM
from benchmarks.money.plan import FAR, Operation, operations
from benchmarks.money.results import PER, Result, conclude
from benchmarks.money.subject import Subject, Victim
from benchmarks.postgres_server import serving

KILL_EVERY_S: Final = 1.5
"""Mean seconds between kills."""

STORES: Final = ("sqlite", "postgresql")

VICTIMS: Final[dict[Victim, int]] = {
    "worker": 8, "ledger": 6, "engine": 4, "node": 2, "database": 2, "group": 1,
    "freeze": 1, "reload": 1, "restart": 1, "reprice": 5, "rotate": 2,
}  # fmt: skip


@contextlib.contextmanager
def truthful_upstream(log: Path) -> Iterator[str]:
    """The upstream in a process of its own; gives its address."""
    log.touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.truthful_upstream", "--log", str(log)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[1],
    )
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def drive(
    subject: Subject, truth: Path, *, seed: int, victims: Iterable[Victim], seconds: float | None = None,
    requests: int | None = None, clients: int = 32, every_s: float = KILL_EVERY_S,
) -> Result:  # fmt: skip
    """Load a gateway that serves already, kill its processes meanwhile, and compare what is left.

    Args:
        subject: The gateway.
        truth: The upstream's log.
        seed: Of load and kills.
        victims: What happens to it, one after the other; when all has happened, the load stops.
        seconds: Or then.
        requests: Or after so many operations.
        clients: How many ask at the same time.
        every_s: Mean seconds between two victims.
    """
    draw = random.Random(seed + 1)
    load = Load(subject.urls, subject.keys, clients=clients)
    began = time.monotonic()
    asked = asyncio.create_task(load.run(_asked(subject, seed), requests))
    kills: Counter[str] = Counter()
    coming = iter(victims)
    try:
        while not asked.done() and (seconds is None or time.monotonic() - began < seconds):
            await asyncio.wait({asked}, timeout=every_s * (0.5 + draw.random()))
            if not asked.done():
                if (victim := next(coming, None)) is None:
                    break
                if victim != "nobody" and await asyncio.to_thread(subject.kill, victim):
                    kills[victim] += 1
        load.stop()
        await asked
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    return await conclude(subject, load, truth, time.monotonic() - began, kills)


def drawn(seed: int) -> Iterator[Victim]:
    """Victims without end."""
    draw = random.Random(seed + 2)
    while True:
        yield draw.choices(list(VICTIMS), list(VICTIMS.values()))[0]


def _asked(subject: Subject, seed: int) -> Iterator[Operation]:
    drawn = operations(seed, len(subject.keys), subject.tight)
    return (one for one in drawn if subject.near or one.model == FAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--requests", type=int, help="operations; each is one request or more")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=(*STORES, "both"), default="sqlite")
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=1, help="gateways on PostgreSQL")
    parser.add_argument("--workers", type=int, default=2, help="of each node")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--every", type=float, default=KILL_EVERY_S, help="mean seconds between kills")
    parser.add_argument("--calm", action="store_true", help="kill nothing")
    parser.add_argument(
        "--crash-points", action="store_true", help="instead, die once at every named crash point of Headgate"
    )
    parser.add_argument("--litellm", type=Path, metavar="VENV", help="also a LiteLLM proxy, installed there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave data and logs there")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args()
    if given.litellm and given.crash_points:
        parser.error("--crash-points are Headgate's own")
    if given.seconds is None and given.requests is None:
        given.seconds = 60.0
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = [*(STORES if given.store == "both" else (given.store,)), *(["litellm"] if given.litellm else [])]
        results = [_run(name, folder / name, given) for name in names]
    show(results, given.seed)
    if given.json:
        facts = ("seed", "workers", "nodes", "clients", "every", "calm", "crash_points")
        document = {"benchmark": "money_errors", "cores": os.cpu_count(), **{n: getattr(given, n) for n in facts}}
        print(json.dumps({**document, "subjects": [result.document() for result in results]}))
    if not all(result.clean for result in results if result.audited):
        sys.exit(1)


def _run(name: str, folder: Path, given: argparse.Namespace) -> Result:
    folder.mkdir(parents=True)
    victims: Iterator[Victim] = repeat("nobody") if given.calm else drawn(given.seed)
    truth = folder / "truth.jsonl"
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(truthful_upstream(truth))
        subject: Subject
        if name == "litellm":
            subject = LiteLLM(folder, upstream, given.litellm)
        else:
            database = stack.enter_context(serving()) if name == "postgresql" else None
            subject = headgate = Headgate(
                folder,
                upstream,
                workers=given.workers,
                draw=random.Random(given.seed),
                nodes=given.nodes if database else 1,
                database=database,
            )
            stack.callback(headgate.kill_everything)
            if given.crash_points:
                return asyncio.run(die_everywhere(headgate, truth, seed=given.seed, clients=given.clients))
        subject.start()
        try:
            return asyncio.run(
                drive(
                    subject, truth, seed=given.seed, victims=victims,
                    seconds=given.seconds, requests=given.requests, clients=given.clients, every_s=given.every,
                )
            )  # fmt: skip
        finally:
            subject.stop()


def show(results: list[Result], seed: int) -> None:
    """A table for people."""
    documents = [result.document() for result in results]
    print(f"seed {seed}, {os.cpu_count()} cores; counts per {PER:,} requests")
    rows = {
        "requests": "requests",
        "answered in full": "complete",
        **{label: f"{kind}_per_10000" for label, kind in {
            "charges lost": "lost", "charges doubled": "doubled", "charges wrong": "wrong",
            "refused for good": "refused", "requests hung": "hung",
        }.items()},
        "budgets overrun (nano)": "overrun_nano",
        "audit": "audit",
    }  # fmt: skip
    print(" " * 24 + "".join(f"{document['subject']:>22}" for document in documents))
    for label, name in rows.items():
        print(f"{label:24}" + "".join(f"{document[name]!s:>22}" for document in documents))
    for document in documents:
        print(f"kills of {document['subject']}: {document['kills']}")
        for finding in document["first"]:
            print(f"  {finding}")


if __name__ == "__main__":
    main()

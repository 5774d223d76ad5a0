"""How many charges a gateway loses, doubles or gets wrong while its processes are killed at random.

`python -m benchmarks.money_errors [--seconds 60 | --requests N] [--seed 1] [--calm] [--json] [--litellm VENV]`

A truthful upstream (`benchmarks.truthful_upstream`) answers whole and streamed, lies, stalls and resets;
clients ask, hang up, and try again with the same key; meanwhile workers, ledger, engines and the whole group are
killed with SIGKILL. Afterwards the gateway's own audit runs, and three views are compared: what clients saw, what
the upstream did, what the gateway recorded. The table counts per 10,000 requests; the aim is a row of zeros.

With `--litellm VENV` the same load goes to a LiteLLM proxy of that virtual environment, in a second column: one
process, no budgets, and its records are what its own success callback writes to disk.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.money.clients import Load
from benchmarks.money.compare import Findings, compare
from benchmarks.money.headgate import Headgate
from benchmarks.money.litellm_proxy import LiteLLM
from benchmarks.money.plan import FAR, Operation, operations
from benchmarks.money.subject import Subject, Victim
from benchmarks.truthful_upstream import read_truth

PER: Final = 10_000
KILL_EVERY_S: Final = 1.5
"""Mean seconds between kills."""

VICTIMS: Final[dict[Victim, int]] = {"worker": 4, "ledger": 3, "engine": 2, "group": 1}
KINDS: Final = ("lost", "doubled", "wrong", "refused", "hung")
SHOWN: Final = 10


@dataclass
class Result:
    """What came of one gateway's run."""

    subject: str
    requests: int
    operations: int
    complete: int
    seconds: float
    kills: Counter[str]
    findings: Findings
    audit: str | None

    @property
    def clean(self) -> bool:
        """Whether nothing at all was found."""
        return not self.findings.all() and self.audit is None

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        found = self.findings
        per = PER / max(1, self.requests)
        return {
            "subject": self.subject,
            "requests": self.requests,
            "operations": self.operations,
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "kills": dict(self.kills),
            **{kind: len(getattr(found, kind)) for kind in KINDS},
            **{f"{kind}_per_10000": round(len(getattr(found, kind)) * per, 2) for kind in KINDS},
            "overrun_nano": found.overrun,
            "audit": self.audit or "ok",
            "first": found.all()[:SHOWN],
        }


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
    subject: Subject, truth: Path, *, seed: int, seconds: float | None, requests: int | None, kill: bool,
    clients: int = 32,
) -> Result:  # fmt: skip
    """Load a gateway that serves already, kill its processes meanwhile, and compare what is left.

    Args:
        subject: The gateway.
        truth: The upstream's log.
        seed: Of load and kills.
        seconds: When to stop.
        requests: Or after so many operations.
        kill: Whether to kill at all.
        clients: How many ask at the same time.
    """
    draw = random.Random(seed + 1)
    load = Load(subject.url, subject.keys, clients=clients)
    began = time.monotonic()
    asked = asyncio.create_task(load.run(_asked(subject, seed), requests))
    kills: Counter[str] = Counter()
    try:
        while not asked.done() and (seconds is None or time.monotonic() - began < seconds):
            await asyncio.wait({asked}, timeout=KILL_EVERY_S * (0.5 + draw.random()) if kill else 0.2)
            if kill and not asked.done():
                victim = draw.choices(list(VICTIMS), list(VICTIMS.values()))[0]
                if await asyncio.to_thread(subject.kill, victim):
                    kills[victim] += 1
        load.stop()
        await asked
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    took = time.monotonic() - began
    await asyncio.to_thread(subject.settle)
    windows = await asyncio.to_thread(subject.windows)
    audit = await asyncio.to_thread(subject.audit)
    await asyncio.to_thread(subject.stop)
    audit = audit or await asyncio.to_thread(subject.audit)
    records = await asyncio.to_thread(subject.records)
    findings = compare(load.done, read_truth(truth), records, windows)
    complete = sum(tried.complete for one in load.done for tried in one.tries)
    return Result(subject.name, load.tries, len(load.done), complete, took, kills, findings, audit)


def _asked(subject: Subject, seed: int) -> Iterator[Operation]:
    drawn = operations(seed, len(subject.keys), subject.tight)
    return (one for one in drawn if subject.near or one.model == FAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--requests", type=int, help="operations; each is one request or more")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--calm", action="store_true", help="kill nothing")
    parser.add_argument("--litellm", type=Path, metavar="VENV", help="also a LiteLLM proxy, installed there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave data and logs there")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args()
    if given.seconds is None and given.requests is None:
        given.seconds = 60.0
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = [
            _run(name, folder / name, given) for name in ("headgate", "litellm")[: 1 + bool(given.litellm)]
        ]
    show(results, given.seed)
    if given.json:
        document = {"benchmark": "money_errors", "seed": given.seed, "cores": os.cpu_count()}
        print(json.dumps({**document, "subjects": [result.document() for result in results]}))
    if not results[0].clean:
        sys.exit(1)


def _run(name: str, folder: Path, given: argparse.Namespace) -> Result:
    folder.mkdir(parents=True)
    truth = folder / "truth.jsonl"
    with truthful_upstream(truth) as upstream:
        subject: Subject
        if name == "headgate":
            subject = Headgate(folder, upstream, workers=given.workers, draw=random.Random(given.seed))
        else:
            subject = LiteLLM(folder, upstream, given.litellm)
        subject.start()
        try:
            return asyncio.run(
                drive(
                    subject, truth, seed=given.seed, seconds=given.seconds, requests=given.requests,
                    kill=not given.calm, clients=given.clients,
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
    print(" " * 24 + "".join(f"{document['subject']:>16}" for document in documents))
    for label, name in rows.items():
        print(f"{label:24}" + "".join(f"{document[name]!s:>16}" for document in documents))
    for document in documents:
        print(f"kills of {document['subject']}: {document['kills']}")
        for finding in document["first"]:
            print(f"  {finding}")


if __name__ == "__main__":
    main()

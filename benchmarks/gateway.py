"""What the gateway costs, beside nginx and, where given, other gateways; all in one run, on the same cores.

`python -m benchmarks.gateway [--json] [--seconds 5] [--rounds 3] [--only NAMES] [--litellm VENV]
[--portkey FOLDER]`

nginx plays the provider with one fixed answer; wrk sends the same chat request over 1 and 32 connections, and to
Headgate over 1, 32 and 64 for each worker.
Compared are the provider itself, nginx as a bare proxy, and Headgate with authentication, a budget, two rates, a
limit of concurrency and both commits (hold and settlement, synced to disk) awaited before the answer leaves.
nginx and Headgate take turns in rounds, because a machine that others use is not the same from one minute to the
next; the summary has the medians of the rounds. Workers, ledger, provider and load run on a core each, where
there are four. `--only` picks parts: direct, proxy, one, two, streams. Times per request are processor time, as
other load on the machine disturbs that less than rates.
Needs nginx and wrk (Debian: `apt-get install nginx wrk`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gateways import nginx, others
from benchmarks.gateways.load import Measured, drive
from benchmarks.gateways.machine import Cores, pin
from benchmarks.gateways.ours import headgate
from benchmarks.gateways.streams import run_streams, steady_upstream
from benchmarks.ledger import sync_time
from benchmarks.ports import free_port

PATH = "/v1/chat/completions"
CONNECTIONS = (1, 32)
PER_WORKER = (1, 32, 64)
"""Of ours, but a single one is a single one however many workers there are."""
STREAMS = 1_000
CHUNKS_PER_S = 20.0
PARTS = ("direct", "proxy", "one", "two", "streams")


class Comparison:
    """The rows of one run.

    Args:
        folder: For configs and data.
        seconds: That each load lasts.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self.cores = Cores.of_machine()
        self.rows: list[dict[str, Any]] = []
        self.streams: list[dict[str, Any]] = []
        self.round = 0

    @contextmanager
    def provider(self, cores: Cores) -> Iterator[int]:
        """The fixed answer; gives its port."""
        port = free_port()
        process = nginx.start_upstream(self._folder, port)
        try:
            time.sleep(0.3)
            pin(process.pid, cores.upstream)
            yield port
        finally:
            process.terminate()
            process.wait()

    def direct(self) -> None:
        """The provider itself."""
        with self.provider(self.cores) as port:
            self._row("nginx, direct", lambda n: self._drive(f"http://127.0.0.1:{port}", {}, n))

    def proxy(self) -> None:
        """The proxy that only passes on."""
        with self.provider(self.cores) as upstream:
            port = free_port()
            process = nginx.start_proxy(self._folder, port, upstream)
            try:
                time.sleep(0.3)
                pin(process.pid, self.cores.workers[0])
                url = f"http://127.0.0.1:{port}"
                self._row("nginx proxy_pass", lambda n: self._drive(url, {}, n, pids=(process.pid,)))
            finally:
                process.terminate()
                process.wait()

    def ours(self, workers: int) -> None:
        """Headgate, everything on."""
        cores = Cores.of_machine(workers)
        with (
            self.provider(cores) as upstream,
            headgate(self._folder / f"w{workers}-{self.round}", upstream, cores) as ours,
        ):
            self._row(
                f"headgate, {workers} worker{'s' * (workers > 1)}",
                lambda n: self._drive(
                    ours.url,
                    {"authorization": f"Bearer {ours.key}"},
                    n,
                    pids=ours.workers,
                    ledger=(ours.ledger,),
                    core=cores.load,
                ),
                [n * workers if n > 1 else n for n in PER_WORKER],
            )
            self.rows[-1]["audit_ok"] = ours.audit()

    def other(self, name: str, start: Callable[[Path, Path, int, int], Any], install: Path) -> None:
        """Another gateway, nothing on. One that does not start costs its row, not the run."""
        try:
            with (
                self.provider(self.cores) as upstream,
                start(install, self._folder, upstream, self.cores.workers[0]) as it,
            ):
                self._row(name, lambda n: self._drive(it.url, it.headers, n, pids=it.pids))
        except RuntimeError as error:
            print(f"{name}: {error}")

    def streaming(self, workers: int) -> None:
        """Streams, every chunk counted."""
        cores = Cores.of_machine(workers)
        chunks = round(max(6.0, self._seconds) * CHUNKS_PER_S)
        with (
            steady_upstream(chunks, CHUNKS_PER_S, cores.upstream) as upstream,
            headgate(self._folder / f"s{workers}", upstream, cores) as ours,
        ):
            measured = run_streams(
                ours.url,
                ours.key,
                streams=STREAMS,
                chunks=chunks,
                per_s=CHUNKS_PER_S,
                core=cores.load,
                workers=ours.workers,
            )
            row = {"workers": workers, **measured.as_dict(), "audit_ok": ours.audit()}
        self.streams.append(row)
        print(
            f"{STREAMS:,} streams x {CHUNKS_PER_S:g} chunks/s, {workers} worker{'s' * (workers > 1)}: "
            f"{row['at_once']:,} at once, {row['whole']:,} whole, {row['lost']:,} chunks lost, "
            f"{row['chunks_per_s']:,.0f} chunks/s, late p50 {row['late_p50_ms']} p99 {row['late_p99_ms']} ms, "
            f"{row['worker_us']} µs a chunk, {row['memory_mb']} MB"
        )
        for error in row["errors"]:
            print(f"  {error}")

    def _drive(self, url: str, headers: Any, connections: int, core: int | None = None, **pids: Any) -> Measured:
        return drive(
            url + PATH,
            headers,
            self._folder,
            core=self.cores.load if core is None else core,
            connections=connections,
            seconds=self._seconds,
            **pids,
        )

    def _row(
        self, name: str, measure: Callable[[int], Measured], connections_of: Sequence[int] = CONNECTIONS
    ) -> None:
        for connections in connections_of:
            measured = measure(connections)
            self.rows.append({"gateway": name, "round": self.round, **measured.as_dict()})
            print(
                f"{name:<22}{measured.connections:>6}{measured.requests_per_s:>12,.0f}{measured.p50_ms:>9.2f}"
                f"{measured.p99_ms:>9.2f}{measured.failures:>10}{_shown(measured.cpu_us):>9}"
                f"{_shown(measured.ledger_us):>11}{_shown(measured.busy):>6}{_shown(measured.memory_mb):>8}",
                flush=True,
            )


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.4g}"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3, help="of nginx and Headgate")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--litellm", type=Path, help="a virtual environment with litellm[proxy]")
    parser.add_argument("--portkey", type=Path, help="a folder with @portkey-ai/gateway in node_modules")
    given = parser.parse_args()
    only = given.only.split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("nginx", "wrk", "taskset") if not shutil.which(name, path=path)]
    if missing:
        sys.exit(f"{', '.join(missing)} not found; on Debian: apt-get install nginx wrk util-linux")
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as name:
        report(Path(name), given, only)


def report(folder: Path, given: argparse.Namespace, only: list[str]) -> None:
    """Measure the parts asked for and print them."""
    facts = {
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "fdatasync_p50_us": round(sync_time(folder) * 1e6),
        "seconds": given.seconds,
    }
    print(" ".join(f"{name}={value}" for name, value in facts.items()))
    print(
        f"{'':<22}{'conns':>6}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'failures':>10}{'µs/req':>9}"
        f"{'ledger µs':>11}{'busy':>6}{'MB':>8}"
    )
    run = Comparison(folder, given.seconds)
    parts: dict[str, Callable[[], None]] = {
        "direct": run.direct,
        "proxy": run.proxy,
        "one": lambda: run.ours(1),
        "two": lambda: run.ours(2),
    }
    for run.round in range(given.rounds):
        for part, measure in parts.items():
            if part in only:
                measure()
    if given.litellm:
        run.other("LiteLLM", others.litellm, given.litellm)
    if given.portkey:
        run.other("Portkey", others.portkey, given.portkey)
    if "streams" in only:
        run.streaming(1)
        run.streaming(2)
    summary = _summary(run.rows)
    for line, value in summary.items():
        print(f"{line} {value}")
    if given.json:
        document = {"benchmark": "gateway", **facts, "rows": run.rows, "streams": run.streams, "summary": summary}
        print(json.dumps(document))


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figures that have aims, as medians of the rounds. Two workers over one: the most of each."""
    found: dict[str, list[float]] = defaultdict(list)
    for number in {row["round"] for row in rows}:
        of: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for row in rows:
            if row["round"] == number:
                of[row["gateway"]][row["connections"]] = row
        direct, one, two = of["nginx, direct"], of["headgate, 1 worker"], of["headgate, 2 workers"]
        if one:
            found["one_worker_requests_per_s"].append(one[32]["requests_per_s"])
        if direct and one:
            found["added_p50_ms"].append(one[1]["p50_ms"] - direct[1]["p50_ms"])
        if one and two:
            most = [max(row["requests_per_s"] for row in rates.values()) for rates in (one, two)]
            found["two_workers_over_one"].append(most[1] / most[0])
            found["two_workers_at_64_over_one_at_32"].append(
                two[64]["requests_per_s"] / one[32]["requests_per_s"]
            )
    return {name: round(median(values), 3) for name, values in found.items()}


if __name__ == "__main__":
    main()

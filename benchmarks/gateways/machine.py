"""Which core runs what, and what a process tree costs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Cores:
    """The cores of the parts; on machines with fewer than four, some share.

    Attributes:
        workers: One for each worker of the gateway under test; a gateway that is one process runs on the first.
        ledger: Of our ledger.
        upstream: Of the provider's stand-in.
        load: Of the load generator.
    """

    workers: tuple[int, ...]
    ledger: int
    upstream: int
    load: int

    @classmethod
    def of_machine(cls, workers: int = 1) -> Cores:
        """Spread over the cores that this process may use: workers first, then ledger, upstream, load."""
        free = sorted(os.sched_getaffinity(0))
        chosen = [free[n % len(free)] for n in range(workers + 3)]
        if workers == 2 and len(free) == 4:
            # Two workers and the ledger need a core each; upstream and load share what is left.
            chosen[4] = chosen[3]
        return cls(tuple(chosen[:workers]), *chosen[workers:])


def pin(pid: int, core: int) -> None:
    """Keep a process, with all its threads, on one core; threads to come inherit it."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), {core})


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time, user and system, that processes have used until now."""
    total = 0.0
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system
    return total


def memory_mb(pids: Iterable[int]) -> float:
    """Resident memory of processes together, in MB; shared pages count in each."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6

"""What comes of a run: its counts, and how they are taken once the load has ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.money.clients import Load
from benchmarks.money.compare import Findings, compare
from benchmarks.money.subject import Subject
from benchmarks.truthful_upstream import read_truth

PER: Final = 10_000
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
    audited: bool

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
            "audit": self.audit or ("ok" if self.audited else "has none"),
            "first": found.all()[:SHOWN],
        }


async def conclude(subject: Subject, load: Load, truth: Path, took: float, kills: Counter[str]) -> Result:
    """Let what is in flight end, audit, stop, audit again, and compare the three views."""
    await asyncio.to_thread(subject.settle)
    windows = await asyncio.to_thread(subject.windows)
    versions = await asyncio.to_thread(subject.versions)
    audit = await asyncio.to_thread(subject.audit)
    await asyncio.to_thread(subject.stop)
    audit = audit or await asyncio.to_thread(subject.audit)
    records = await asyncio.to_thread(subject.records)
    findings = compare(load.done, read_truth(truth), records, windows, versions, subject.payers)
    complete = sum(tried.complete for one in load.done for tried in one.tries)
    reached = sum(tried.status is not None for one in load.done for tried in one.tries)
    return Result(subject.name, reached, len(load.done), complete, took, kills, findings, audit, subject.audits)

"""Holds three views against each other: what clients saw, what the upstream did, what the gateway recorded.

Every finding is one sentence that names the operation, so that it can be looked up in all three.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.money.clients import Done, Try
from benchmarks.money.plan import LIES, WAIVED, Operation, cost
from benchmarks.truthful_upstream import Truth


@dataclass(frozen=True)
class Record:
    """A usage record, of any gateway.

    Attributes:
        request_id: The gateway's name for the request; what its client was told, where it was told one.
        operation: The operation's name.
        outcome: `ok`, or how it broke off.
        input: Input tokens billed.
        output: Output tokens billed.
        cost: Nano-units.
        billed: Whether the customer pays.
        held: The most that it could have cost; None where the gateway holds nothing.
    """

    request_id: str
    operation: str
    outcome: str
    input: int
    output: int
    cost: int
    billed: bool
    held: int | None = None


@dataclass(frozen=True)
class Window:
    """A budget after the load: its limit, what the gateway says was spent and is still held, in nano-units.

    `accounts` are the load's keys that pay into it.
    """

    name: str
    limit: int
    spent: int
    held: int
    accounts: frozenset[int]


@dataclass
class Findings:
    """What went wrong, by kind. `overrun` is nano-units over the limit, summed over budgets."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    overrun: int = 0

    def all(self) -> list[str]:
        """Every finding, its kind first."""
        kinds = ("lost", "doubled", "wrong", "refused", "hung")
        found = [f"{kind}: {text}" for kind in kinds for text in getattr(self, kind)]
        return [*found, f"overrun: {self.overrun} nano-units"] if self.overrun else found


def compare(
    done: Sequence[Done], truth: Iterable[Truth], records: Sequence[Record], windows: Sequence[Window]
) -> Findings:
    """Find every charge that is lost, doubled or wrong, every overrun, every refusal that was for good."""
    findings = Findings()
    attempts: defaultdict[str, list[Truth]] = defaultdict(list)
    for attempt in truth:
        attempts[attempt.op].append(attempt)
    by_operation: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_operation[record.operation].append(record)
    known = {one.operation.name for one in done}
    findings.doubled += [
        f"{r.request_id} was billed to nobody's order {r.operation!r}"
        for r in records
        if r.billed and r.operation not in known
    ]
    for one in done:
        name = one.operation.name
        _Check(one, attempts[name], by_operation[name], findings).run()
    _check_budgets(done, records, windows, findings)
    return findings


class _Check:
    """One operation in all three views."""

    def __init__(self, done: Done, truth: list[Truth], records: list[Record], findings: Findings) -> None:
        self._operation: Operation = done.operation
        self._done = done
        self._truth = truth
        self._billed = [record for record in records if record.billed]
        self._by_id = {record.request_id: record for record in records}
        self._findings = findings

    def run(self) -> None:
        """Add what is wrong to the findings."""
        self._check_number()
        for tried in self._done.tries:
            if tried.complete:
                self._check_complete(tried)
            elif tried.status == 200 and tried.words:
                self._check_partial(tried)
            if tried.text != self._operation.answer(tried.words):
                self._findings.wrong.append(f"{self._name} got other words than were made for it")
            if tried.hung:
                self._findings.hung.append(self._name)
        for record in self._billed:
            self._check_record(record)
        if not self._done.resolved:
            last = [(tried.status, tried.code) for tried in self._done.tries[-3:]]
            self._findings.refused.append(f"{self._name} was never answered; last {last}")

    @property
    def _name(self) -> str:
        operation = self._operation
        kind = "stream" if operation.stream else "whole"
        return f"{operation.name} ({operation.model}, {kind}, {operation.order.behaviour})"

    def _check_number(self) -> None:
        billed, sent = len(self._billed), sum(not tried.replayed for tried in self._done.tries)
        most = 1 if self._operation.claimed else sent
        if self._operation.far:
            most = min(most, len(self._truth))
        if billed > most:
            ids = [record.request_id for record in self._billed]
            self._findings.doubled.append(
                f"{self._name} was billed {billed} times, {most} at most are due: {ids}"
            )

    def _check_complete(self, tried: Try) -> None:
        record = self._by_id.get(tried.request_id)
        if record is None or not record.billed:
            self._findings.lost.append(
                f"{self._name} was answered in full as {tried.request_id} without a charge"
            )
            return
        if tried.cost is not None and tried.cost != record.cost:
            self._findings.wrong.append(f"{self._name} was told {tried.cost}, but charged {record.cost}")
        if record.output != tried.words:
            self._findings.wrong.append(
                f"{self._name} got {tried.words} words, but is charged for {record.output} ({record.outcome})"
            )
        if self._operation.far and max((t.words for t in self._truth), default=0) < tried.words:
            self._findings.wrong.append(f"{self._name} got more words than the upstream made")

    def _check_partial(self, tried: Try) -> None:
        """Who got part of an answer pays for it; the newest word may have been on its way."""
        record = self._by_id.get(tried.request_id)
        if record is not None and record.outcome == "engine_crash":
            return  # an engine of the gateway died: on the house
        if self._operation.model == WAIVED and record is not None and record.outcome == "client_gone":
            return  # by the model's policy
        paid = record.output if record is not None and record.billed else 0
        if paid < tried.words - 1:
            outcome = "no record" if record is None else record.outcome
            self._findings.lost.append(
                f"{self._name} got {tried.words} words as {tried.request_id} and pays for {paid} ({outcome})"
            )

    def _check_record(self, record: Record) -> None:
        operation = self._operation
        told = max((t.words for t in self._truth), default=0) if operation.far else operation.prompt
        if record.output > told:
            self._findings.wrong.append(
                f"{self._name} is charged for {record.output} words of {told} ({record.request_id})"
            )
        if record.outcome == "ok" and operation.far:
            complete = {t.words for t in self._truth if t.end == "complete"}
            if complete and record.output not in complete:
                self._findings.wrong.append(
                    f"{self._name} is charged for {record.output} words, not {complete} ({record.request_id})"
                )
        lied = operation.far and operation.order.behaviour in LIES
        if not lied and record.input != operation.prompt:
            self._findings.wrong.append(
                f"{self._name} is charged for {record.input} input tokens, not {operation.prompt}"
            )
        due = cost(record.input, record.output)
        if record.held is not None:
            due = min(due, record.held)
        if record.cost != due:
            self._findings.wrong.append(f"{self._name} is charged {record.cost}, not {due} ({record.request_id})")


def _check_budgets(
    done: Sequence[Done], records: Sequence[Record], windows: Sequence[Window], findings: Findings
) -> None:
    accounts = {one.operation.name: one.operation.account for one in done}
    for window in windows:
        captured = sum(r.cost for r in records if r.billed and accounts.get(r.operation) in window.accounts)
        findings.overrun += max(0, captured - window.limit)
        if captured != window.spent:
            findings.wrong.append(f"{window.name} says {window.spent} is spent, its records {captured}")
        if window.held:
            findings.refused.append(f"{window.name} still holds {window.held} with nothing in flight")
    for one in done:
        refusals = [tried for tried in one.tries if tried.status == 402]
        left = min(
            (w.limit - w.spent for w in windows if one.operation.account in w.accounts),
            default=None,
        )
        if refusals and left is not None and one.operation.affordable_at <= left:
            findings.refused.append(
                f"{one.operation.name} was refused with {refusals[-1].code}, but {left} is left and it needs at "
                f"most {one.operation.affordable_at}"
            )

"""Holds three views against each other: what clients saw, what the upstream did, what the gateway recorded.

Every finding is one sentence that names the operation, so that it can be looked up in all three.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from benchmarks.money.clients import Done, Try
from benchmarks.money.plan import LIES, PRICES, WAIVED, Operation, Payer, Price
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
        price: Which price version it was charged at; None where the gateway has none.
        admitted_at: Microseconds.
        finished_at: Microseconds.
    """

    request_id: str
    operation: str
    outcome: str
    input: int
    output: int
    cost: int
    billed: bool
    held: int | None = None
    price: str | None = None
    admitted_at: int = 0
    finished_at: int = 0


@dataclass(frozen=True)
class Version:
    """What a model cost from a moment on (microseconds), as it was ordered."""

    model: str
    effective_from: int
    price: Price


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


REFUSED: Final = frozenset({400, 401, 403, 404, 405, 408, 413, 422, 431, 500})
"""What no request of the load deserves."""

MINUTE_US: Final = 60_000_000


def compare(
    done: Sequence[Done],
    truth: Iterable[Truth],
    records: Sequence[Record],
    windows: Sequence[Window],
    versions: Mapping[str, Version] | None = None,
    payers: Sequence[Payer] = (),
) -> Findings:
    """Find every charge that is lost, doubled or wrong, every overrun, every refusal that was for good.

    Args:
        done: What clients saw.
        truth: What the upstream did.
        records: What the gateway recorded.
        windows: Its budgets as they stand.
        versions: Its price versions by id, with the terms that were ordered; None: prices never change.
        payers: Who pays, by account; their limits are held against the records.
    """
    findings = Findings()
    tariff = Tariff(versions or {})
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
        _Check(one, attempts[name], by_operation[name], findings, tariff).run()
    _check_budgets(done, records, windows, findings, tariff)
    for account, payer in enumerate(payers):
        own = [r for one in done if one.operation.account == account for r in by_operation[one.operation.name]]
        findings.wrong += _over_limits(payer, own)
    return findings


class Tariff:
    """What models cost, and when."""

    def __init__(self, versions: Mapping[str, Version]) -> None:
        self._versions = versions
        self._by_model: defaultdict[str, list[Version]] = defaultdict(list)
        for version in versions.values():
            self._by_model[version.model].append(version)

    def of(self, model: str, record: Record) -> Price | None:
        """The price that a record is due at; None when it was charged at another than was in force."""
        if not self._versions:
            return PRICES[model]
        begun = [v.effective_from for v in self._by_model[model] if v.effective_from <= record.admitted_at]
        version = self._versions.get(record.price or "")
        if version is None or version.model != model or version.effective_from != max(begun, default=None):
            return None
        return version.price

    def dearest(self, operation: Operation) -> int:
        """What is surely enough for an operation, whenever it came."""
        prices = [PRICES[operation.model], *(v.price for v in self._by_model[operation.model])]
        return max(map(operation.affordable_at, prices))


class _Check:
    """One operation in all three views."""

    def __init__(
        self, done: Done, truth: list[Truth], records: list[Record], findings: Findings, tariff: Tariff
    ) -> None:
        self._operation: Operation = done.operation
        self._tariff = tariff
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
            whole = tried.complete and self._operation.task != "chat"
            if tried.text != self._operation.answer(tried.words or whole):
                self._findings.wrong.append(f"{self._name} got other words than were made for it")
            if tried.status in REFUSED:
                self._findings.refused.append(f"{self._name} was refused with {tried.status} {tried.code}")
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
        again = self._operation.task != "chat" and self._operation.claimed and self._billed
        if record is not None and not record.billed and again:
            return  # what makes no text may run again for a key that has paid already
        if record is None or not record.billed:
            self._findings.lost.append(
                f"{self._name} was answered in full as {tried.request_id} without a charge"
            )
            return
        if tried.cost is not None and tried.cost != record.cost:
            self._findings.wrong.append(f"{self._name} was told {tried.cost}, but charged {record.cost}")
        if record.output != self._operation.billed_output(tried.words):
            self._findings.wrong.append(
                f"{self._name} got {tried.words} words, but is charged for {record.output} ({record.outcome})"
            )
        made = max((t.words for t in self._truth), default=0)
        if self._operation.far and made < self._operation.billed_output(tried.words):
            self._findings.wrong.append(f"{self._name} got more words than the upstream made")

    def _check_partial(self, tried: Try) -> None:
        """Who got part of an answer pays for it; the newest word may have been on its way."""
        record = self._by_id.get(tried.request_id)
        if record is not None and record.outcome == "engine_crash":
            return  # an engine of the gateway died: on the house
        waived = ("client_gone", "gateway_crash")
        if self._operation.model == WAIVED and record is not None and record.outcome in waived:
            return  # by the model's policy
        paid = record.output if record is not None and record.billed else 0
        if paid < tried.words - 1:
            outcome = "no record" if record is None else record.outcome
            self._findings.lost.append(
                f"{self._name} got {tried.words} words as {tried.request_id} and pays for {paid} ({outcome})"
            )

    def _check_record(self, record: Record) -> None:
        operation = self._operation
        made = max((t.words for t in self._truth), default=0) if operation.far else operation.prompt
        told = operation.billed_output(made)
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
        if not lied and record.input != operation.billed_input:
            self._findings.wrong.append(
                f"{self._name} is charged for {record.input} input tokens, not {operation.billed_input}"
            )
        price = self._tariff.of(operation.model, record)
        if price is None:
            self._findings.wrong.append(f"{self._name} is charged at {record.price}, which was not in force")
            return
        due = price.due(record.input, record.output)
        if record.held is not None:
            due = min(due, record.held)
            if record.held > (enough := operation.affordable_at(price)):
                self._findings.wrong.append(
                    f"{self._name} held {record.held}, {enough} is surely enough ({record.request_id})"
                )
        if record.cost != due:
            self._findings.wrong.append(f"{self._name} is charged {record.cost}, not {due} ({record.request_id})")


def _check_budgets(
    done: Sequence[Done],
    records: Sequence[Record],
    windows: Sequence[Window],
    findings: Findings,
    tariff: Tariff,
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
        if refusals and left is not None and (enough := tariff.dearest(one.operation)) <= left:
            findings.refused.append(
                f"{one.operation.name} was refused with {refusals[-1].code}, but {left} is left and it needs at "
                f"most {enough}"
            )


def _over_limits(payer: Payer, records: Sequence[Record]) -> list[str]:
    """Where more was admitted than the limits of a key allow.

    Records are fewer and smaller than what was admitted, so what they show is sure: the time at which all that
    was taken of a rate has flowed off again lies never more than a minute ahead.
    """
    found = []
    in_order = sorted(records, key=lambda record: record.admitted_at)
    for kind, limit in (("rpm", payer.rpm), ("tpm", payer.tpm)):
        flowed_off = 0
        if limit is None:
            continue
        for record in in_order:
            taken = 1 if kind == "rpm" else record.input + record.output
            flowed_off = max(flowed_off, record.admitted_at * limit) + taken * MINUTE_US
            if flowed_off > (record.admitted_at + MINUTE_US) * limit:
                found.append(f"{payer.project} was over its {kind} of {limit} with {record.request_id}")
    moments = sorted((at, step) for r in records for at, step in ((r.admitted_at, 1), (r.finished_at, -1)))
    most = max(accumulate(step for _, step in moments), default=0)
    if payer.concurrency is not None and most > payer.concurrency:
        found.append(f"{payer.project} had {most} requests in flight of {payer.concurrency}")
    return found

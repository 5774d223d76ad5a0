"""The ledger's rules as one synchronous state machine: operations in, replies and writes out.

No sockets, no clock of its own, no SQL: a test can drive it alone. May import domain, book, wire and rows.

Every operation checks first and changes afterwards, so that a refused one leaves no trace. Each is idempotent by
request id: a client that lost its connection sends again what was not answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Protocol

import msgspec

from headgate_gateway.domain import money
from headgate_gateway.domain.budgets import window_of
from headgate_gateway.domain.price_book import PriceBook
from headgate_gateway.domain.pricing import (
    DENOMINATOR,
    PriceVersion,
    bound,
    half_even,
    numerator,
)
from headgate_gateway.ledger import credit, personal, rating, wire
from headgate_gateway.ledger.book import (
    Account,
    Budget,
    ClaimRow,
    Counts,
    Ended,
    Head,
    Hold,
    Key,
    Loaded,
    Part,
    Window,
    Writes,
)
from headgate_gateway.ledger.chain import row_digest
from headgate_gateway.ledger.packing import pack
from headgate_gateway.ledger.refusals import (
    RETRY_ESTIMATE_MS,
    affordable,
    denied,
    find_fault,
    over_budget,
    sane,
)

FIRST_STEP: Final = 1024
"""Output tokens that a stream's hold covers at first."""

CLAIM_US: Final = 24 * 3600 * 1_000_000
ANSWER_US: Final = 600 * 1_000_000
ANSWER_BYTES: Final = 64 * 1024

ONE_PASS: Final = frozenset({"embed", "rerank", "classify", "infer"})
RERUNS: Final = 3
RERUN_US: Final = 600 * 1_000_000

_CRASHES: Final = frozenset({"gateway_crash", "lost_power", "lost_node"})
"""Outcomes that recovery gives, whose counts are a lower bound: their records want reconciliation."""

_OUTPUT: Final = 3
"""Place of `output` among the dimensions."""

_TOKENS: Final = 5
"""How many of the first dimensions count as tokens."""


class Lookup(Protocol):
    """What the rules ask of a store while they run: facts too many to keep in memory."""

    def claim(self, project: str, key: str) -> ClaimRow | None:
        """An idempotency claim, expired or not."""
        ...

    def answer(self, request_id: str, now_us: int) -> bytes | None:
        """The document to replay, while it is kept."""
        ...

    def ended(self, request_id: str) -> Ended | None:
        """How a request ended."""
        ...

    def set_aside(self, places: Collection[personal.Place]) -> list[personal.Place]:
        """Those among the places at which there are personal fields."""
        ...


class State:
    """Everything in memory, and the rules that change it.

    Args:
        loaded: What the store has.
        lookup: For what it has and memory has not.
        salt: Fresh noise for each request with personal fields; a state that admits nothing needs none.
    """

    def __init__(self, loaded: Loaded, lookup: Lookup, salt: Callable[[], bytes] | None = None) -> None:
        self.head: Head = loaded.head
        self.accounts: dict[str, Account] = loaded.accounts
        self.keys: dict[str, Key] = loaded.keys
        self.windows: dict[int, Window] = loaded.windows
        self.holds: dict[str, Hold] = loaded.holds
        self.digests: dict[bytes, Key] = {key.digest: key for key in self.keys.values()}
        self.prices = PriceBook(loaded.prices)
        self._lookup = lookup
        self._salt = salt
        self._worker = -1
        self._incarnation = ""
        self.writes = Writes()
        self.now_us = self.wall_us = self.head.at_us
        self.prices.advance(self.now_us)
        for hold in self.holds.values():
            for account in self._path(hold):
                account.in_flight += 1

    def begin(self, now_us: int) -> None:
        """Start a batch at a time; the ledger's time never runs backwards, nor behind a price that has begun."""
        self.writes = Writes()
        self.wall_us = now_us
        self.now_us = max(now_us, self.head.at_us, self.prices.begun_us)
        self.prices.advance(self.now_us)

    @property
    def batch(self) -> int:
        """Number of the batch that is being filled."""
        return self.head.batch + 1

    # -- admission

    def admit(self, op: wire.Admit) -> wire.Reply:
        """Hold what the request may cost on all its accounts, or on none."""
        if (hold := self.holds.get(op.request_id)) is not None:
            return self._granted(op.n, hold)
        if (fault := find_fault(op)) is not None:
            return wire.Failed(op.n, "invalid", fault)
        if op.deadline_us < self.wall_us:
            return denied(
                op.n, "overloaded", "the ledger was too busy to admit this in time", retry_after_ms=1000
            )
        key = self.keys.get(op.key_id)
        if (forbidden := self._forbidden(op, key)) is not None:
            return forbidden
        assert key is not None
        retry_of = None
        if op.claim is not None:
            earlier = self._claimed(op, key, op.claim)
            if isinstance(earlier, ClaimRow):
                return self._rerun(op, key, earlier)
            if not isinstance(earlier, str | None):
                return earlier
            retry_of = earlier
        version = self.prices.find(key.id, key.path[2].id, op.model)
        if version is None and key.budgeted:
            return denied(
                op.n,
                "unpriced_model",
                f"the model {op.model!r} has no price, and this key has a budget; `price` in the config "
                "gives it one, or `headgate prices set`",
            )
        return self._hold(op, key, version, retry_of)

    def _forbidden(self, op: wire.Admit, key: Key | None) -> wire.Denied | None:
        if key is None or not self.alive(key):
            return denied(op.n, "invalid_api_key", "the key is unknown, revoked or expired")
        if "inference" not in key.scopes:
            return denied(op.n, "permission_denied", "the key may not run models")
        if key.models is not None and op.model not in key.models:
            return denied(op.n, "permission_denied", f"the key may not use the model {op.model!r}")
        return None

    def alive(self, key: Key) -> bool:
        """Whether a key is neither revoked nor expired."""
        return self.now_us < key.ends_us

    def _hold(self, op: wire.Admit, key: Key, version: PriceVersion | None, retry_of: str | None) -> wire.Reply:
        fixed = step = 0
        if version is not None:
            fixed, step = bound(op.bound, version)
        windows, purses = self._limiting(key)
        limiting = [*windows, *(credit.pool(name, purse) for name, purse in purses.items())]
        target = min(op.most, max(op.least, FIRST_STEP)) if op.stream else op.most
        output = target
        amount = -(-(fixed + output * step) // DENOMINATOR)
        if amount:
            for window in limiting:
                if amount > window.room:
                    output = min(output, affordable(window.room, fixed, step))
            if output < op.least or (output < 1 and target > 0):
                return over_budget(op, self.accounts, limiting, fixed, step)
            amount = -(-(fixed + output * step) // DENOMINATOR)
        if amount > money.MAX:
            return denied(op.n, "request_exceeds_budget", "the request could cost more than can be counted")
        takes = rating.take(op, key.path, output, self.now_us)
        if isinstance(takes, wire.Denied):
            return takes
        covered: Counts = (*op.bound[:_OUTPUT], output, *op.bound[_OUTPUT + 1 :])  # type: ignore[assignment]
        hold = Hold(
            op.request_id, key.id, op.model, op.task, version.id if version else None, covered, 0, 0, op.most,
            amount, [amount], [], takes, self._worker, self._incarnation, self.now_us, op.claim, retry_of,
            waive=op.waive, personal=self._set_aside(op, key) if op.tags else None,
        )  # fmt: skip
        self._open(hold, key, windows, op)
        for purse in purses.values():
            credit.draw(hold, purse, hold.held, self.writes)
        return self._granted(op.n, hold)

    def _set_aside(self, op: wire.Admit, key: Key) -> bytes:
        """Keep personal fields in their table, now and never again; hold and record have their hash."""
        assert self._salt is not None
        row = personal.row_of(op.request_id, key.path[1].id, self.now_us, self._salt(), op.tags)
        self.writes.insert("personal", row)
        return row_digest(row)

    def erase(self, places: Collection[personal.Place]) -> int:
        """Erase the personal fields at these places; returns how many there were."""
        before = set(self.writes.erased)
        found = [place for place in self._lookup.set_aside(places) if place not in before]
        self.writes.erased += found
        return len(found)

    def _limiting(self, key: Key) -> tuple[list[Window], dict[str, list[Window]]]:
        """The windows of a key's budgets, and the credit of the accounts that have any, by account."""
        windows: list[Window] = []
        purses: dict[str, list[Window]] = {}
        for account in key.path:
            for budget in account.budgets.values():
                if not credit.is_grant(budget):
                    windows.append(self._window(account, budget))
                elif account.id not in purses:
                    purses[account.id] = credit.purse(account, self.now_us)
        return windows, purses

    def speaks(self, worker: int, incarnation: str) -> None:
        """Whose operations follow: what it admits is pinned to that life of that worker."""
        self._worker, self._incarnation = worker, incarnation

    def _open(self, hold: Hold, key: Key, windows: Iterable[Window], op: wire.Admit) -> None:
        writes = self.writes
        for window in windows if hold.held else ():
            window.held += hold.held
            hold.parts.append(Part(window.id, [window.touch()]))
            writes.windows[window.id] = window
        rating.taken(hold, self.accounts, writes)
        for account in key.path:
            account.in_flight += 1
        self.holds[hold.request_id] = hold
        writes.holds[hold.request_id] = hold
        writes.admitted += 1
        if op.claim is not None:
            place = (key.path[1].id, op.claim)
            writes.claims[place] = ClaimRow(*place, op.fingerprint, op.request_id, "open", self.now_us + CLAIM_US)

    def _granted(self, n: int, hold: Hold) -> wire.Grant:
        return wire.Grant(
            n, hold.request_id, hold.bound[_OUTPUT], hold.held, hold.price,
            rating.states(self._path(hold), self.now_us) if hold.takes else (), hold.retry_of, self._over(hold),
        )  # fmt: skip

    def _over(self, hold: Hold) -> tuple[str, ...]:
        """Soft budgets of a hold that are spent."""
        windows = [self.windows[part.window] for part in hold.parts]
        return tuple(
            [
                f"{self.accounts[window.account].kind}:{window.kind}"
                for window in windows
                if not window.hard and window.spent >= window.limit
            ]
        )

    def _window(self, account: Account, budget: Budget) -> Window:
        """The budget's window at this time, opened when it is a new one."""
        window = budget.window
        if window is not None and window.end_us > self.now_us:
            return window
        if window is not None and not window.held:
            self.windows.pop(window.id, None)
        start, end = window_of(budget.calendar, budget.timezone, self.now_us)
        self.head.windows += 1
        window = Window(
            self.head.windows, account.id, budget.kind, start, end, budget.limit_id, budget.limit, budget.hard
        )
        window.cap = window.limit
        budget.window = self.windows[window.id] = window
        self.writes.windows[window.id] = window
        self.writes.opened.add(window.id)
        return window

    def _path(self, hold: Hold) -> tuple[Account, ...]:
        return self.keys[hold.key_id].path

    # -- idempotency

    def _claim_row(self, project: str, key: str) -> ClaimRow | None:
        return self.writes.claims.get((project, key)) or self._lookup.claim(project, key)

    def _claimed(self, op: wire.Admit, key: Key, claim: str) -> wire.Reply | ClaimRow | str | None:
        """What an earlier use of the idempotency key means.

        An answer; or None: it was not used; or the id of the request that this one retries, because that one was
        billed nothing; or the claim itself, when a request that was billed may run again free of charge.
        """
        found = self._claim_row(key.path[1].id, claim)
        if found is None or found.forgotten(self.now_us):
            return None
        if found.fingerprint != op.fingerprint:
            return denied(
                op.n, "idempotency_mismatch", "the Idempotency-Key was used with another route or body",
                record_id=found.request_id,
            )  # fmt: skip
        if found.state == "open":
            return denied(
                op.n, "idempotency_in_progress", "the request with this Idempotency-Key is still running",
                retry_after_ms=RETRY_ESTIMATE_MS, record_id=found.request_id,
            )  # fmt: skip
        if found.state == "released":
            return found.request_id
        answer = self._answer(found.request_id) if found.state == "stored" else None
        ended = self._how_ended(found.request_id)
        if answer is None or ended is None:
            since = self.now_us - (found.expires_us - CLAIM_US)
            if op.task in ONE_PASS and found.reruns < RERUNS and since < RERUN_US:
                return found
            return denied(
                op.n, "idempotency_consumed",
                "the request with this Idempotency-Key was answered and billed; its answer is no longer kept",
                record_id=found.request_id,
            )  # fmt: skip
        return wire.Replayed(op.n, found.request_id, answer, ended.cost, ended.price)

    def _answer(self, request_id: str) -> bytes | None:
        kept = self.writes.answers.get(request_id)
        return kept[0] if kept is not None else self._lookup.answer(request_id, self.now_us)

    def _how_ended(self, request_id: str) -> Ended | None:
        return self.writes.ended.get(request_id) or self._lookup.ended(request_id)

    def _rerun(self, op: wire.Admit, key: Key, claim: ClaimRow) -> wire.Reply:
        """Run a request of one pass again that was billed but whose answer is not kept: free, a few times."""
        reply = self._hold(msgspec.structs.replace(op, claim=None), key, None, claim.request_id)
        if isinstance(reply, wire.Grant):
            self.writes.claims[claim.project, claim.key] = dataclasses.replace(claim, reruns=claim.reruns + 1)
        return reply

    def _end_claim(self, hold: Hold, state: str, answer: bytes | None) -> None:
        if hold.claim is None:
            return
        project = self._path(hold)[1].id
        found = self._claim_row(project, hold.claim)
        if found is None or found.request_id != hold.request_id:
            return
        if state == "stored" and answer is not None:
            self.writes.answers[hold.request_id] = (answer, self.now_us + ANSWER_US)
        self.writes.claims[project, hold.claim] = ClaimRow(
            project, hold.claim, found.fingerprint, hold.request_id, state, found.expires_us, found.reruns
        )

    # -- what follows an admission

    def extend(self, op: wire.Extend) -> wire.Reply:
        """Let a hold cover more output, as much as fits on all its windows; never less than it does."""
        hold = self.holds.get(op.request_id)
        if hold is None:
            return wire.Failed(op.n, "unknown_request", f"{op.request_id} is not in flight")
        have = hold.bound[_OUTPUT]
        wanted = min(op.output, hold.most)
        if wanted <= have:
            return wire.Covered(op.n, hold.request_id, have, hold.held)
        pinned = [part for part in hold.parts if part.amounts is None]
        windows = [self.windows[part.window] for part in pinned]
        purses = {name: self._purse(name, drawn) for name, drawn in credit.drawn(hold, self.windows).items()}
        version = self.prices.versions[hold.price] if hold.price else None
        fixed, step = bound(hold.bound, version) if version is not None else (0, 0)
        output, others = min(wanted, affordable(money.MAX, fixed, step)), False
        for window in [*windows, *(credit.pool(name, purse) for name, purse in purses.items())]:
            if -(-(fixed + output * step) // DENOMINATOR) - hold.held > window.room:
                output = max(have, min(output, affordable(window.room + hold.held, fixed, step)))
                others = others or window.held > hold.held
        if output > have:
            more = -(-(fixed + output * step) // DENOMINATOR) - hold.held
            hold.held += more
            hold.steps.append(more)
            hold.bound = (*hold.bound[:_OUTPUT], output, *hold.bound[_OUTPUT + 1 :])  # type: ignore[assignment]
            for window, part in zip(windows, pinned, strict=True):
                window.held += more
                part.versions.append(window.touch())
                self.writes.windows[window.id] = window
            for purse in purses.values():
                credit.draw(hold, purse, more, self.writes)
            self.writes.holds[hold.request_id] = hold
            self.writes.extended += 1
        return wire.Covered(op.n, hold.request_id, output, hold.held, output == wanted, others)

    def _purse(self, account: str, drawn: list[Window]) -> list[Window]:
        """What a hold may go on drawing from: its own grants, even expired ones, then the others."""
        return drawn + [w for w in credit.purse(self.accounts[account], self.now_us) if w not in drawn]

    def settle(self, op: wire.Settle) -> wire.Reply:
        """End a request with its record: capture min(actual, hold) on all its windows and give the rest back."""
        hold = self.holds.get(op.request_id)
        if hold is None:
            return self._ended(op.n, op.request_id)
        op = sane(op)
        if hold.waive and op.outcome in _CRASHES:
            op = msgspec.structs.replace(op, billed=False)
        version = self.prices.versions[hold.price] if hold.price else None
        cost = overrun = 0
        if version is not None and op.billed:
            actual = half_even(numerator(op.usage, version), DENOMINATOR)
            cost = min(actual, hold.held)
            overrun = min(actual - cost, money.MAX)
        self._release(hold, cost, sum(op.usage[:_TOKENS]))
        self._record(hold, op, cost, overrun)
        if not op.billed:
            self._end_claim(hold, "released", None)
        elif op.answer is not None and len(op.answer) <= ANSWER_BYTES:
            self._end_claim(hold, "stored", op.answer)
        else:
            self._end_claim(hold, "spent", None)
        return wire.Recorded(op.n, op.request_id, cost, overrun, hold.price)

    def void(self, op: wire.Void) -> wire.Reply:
        """End a request of which nothing was dispatched: everything that it took is given back."""
        hold = self.holds.get(op.request_id)
        if hold is None:
            ended = self._how_ended(op.request_id)
            return wire.Recorded(op.n, op.request_id, ended.cost if ended else 0)
        self._release(hold, 0, None)
        self.writes.ended[hold.request_id] = Ended(0, 0, None)
        detail = hold.detail(b"")
        row = (self.batch, hold.request_id, hold.key_id, self.now_us, pack(detail))
        self.writes.insert("voids", (*row, row_digest(row)))
        self._end_claim(hold, "released", None)
        return wire.Recorded(op.n, op.request_id, 0)

    def _ended(self, n: int, request_id: str) -> wire.Reply:
        ended = self._how_ended(request_id)
        if ended is None:
            return wire.Failed(n, "unknown_request", f"{request_id} was never admitted")
        return wire.Recorded(n, request_id, ended.cost, ended.overrun, ended.price)

    def _release(self, hold: Hold, cost: int, used: int | None) -> None:
        writes = self.writes
        shares = credit.capture(hold, cost, self.windows)
        for part in hold.parts:
            window = self.windows[part.window]
            if part.amounts is None:
                window.held -= hold.held
                window.spent += cost
            else:
                part.captured = shares[part.window]
                window.held -= sum(part.amounts)
                window.spent += part.captured
            part.versions.append(window.touch())
            writes.windows[window.id] = window
            if not window.held and window.end_us <= self.now_us:
                del self.windows[window.id]
        if hold.takes:
            rating.refund(hold, used, self.accounts, self.now_us, writes)
        for account in self._path(hold):
            account.in_flight -= 1
        del self.holds[hold.request_id]
        writes.holds.pop(hold.request_id, None)
        writes.closed.append(hold.request_id)

    def _record(self, hold: Hold, op: wire.Settle, cost: int, overrun: int) -> None:
        self.head.records += 1
        self.writes.ended[hold.request_id] = Ended(cost, overrun, hold.price)
        key, project, organization = self._path(hold)
        detail = hold.detail(op.attempts)
        billed = op.billed and (hold.claim is not None or hold.retry_of is None)  # what runs again is free
        row = (
            self.head.records, self.batch, hold.request_id, organization.id, project.id, key.id, hold.model,
            hold.task, op.backend, op.outcome, op.source, *op.usage, hold.price, hold.held, cost, overrun,
            int(billed), int(bool(overrun) or op.outcome in _CRASHES), hold.admitted_us, op.first_byte_us,
            self.now_us, hold.claim, pack(detail),
        )  # fmt: skip
        self.writes.insert("usage_records", (*row, row_digest(row)))

    def note(self, actor: str, action: str, target: str, detail: dict[str, Any]) -> None:
        """Add an entry to the audit log."""
        self.head.entries += 1
        text = msgspec.json.encode(detail).decode()
        row = (self.head.entries, self.batch, self.now_us, actor, action, target, text)
        self.writes.insert("audit_log", (*row, row_digest(row)))

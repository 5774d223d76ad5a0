"""What the ledger keeps in memory, and what a batch changes of it.

Plain data without rules: `state` has those. May import domain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from headgate_gateway.domain.budgets import FOREVER, WindowKind
from headgate_gateway.domain.commands import AccountKind
from headgate_gateway.domain.limits import Low
from headgate_gateway.domain.money import MAX
from headgate_gateway.domain.pricing import Counts, PriceVersion

CREDIT = "credit"
"""What the kind of a window begins with that is a grant of prepaid credit, see `credit`."""


@dataclass(slots=True, eq=False)
class Window:
    """One budget in one period: what may be spent, what was, and what open holds may still spend.

    Attributes:
        id: Its number in the store.
        account: Whose it is.
        kind: total, hour, day, week, month or a grant's, see `credit`.
        start_us: Microseconds UTC.
        end_us: Exclusive.
        limit_id: The row of `limits` that it was opened under.
        limit: Nano-units in force now.
        hard: Whether it refuses.
        spent: Captured.
        held: In open holds.
        cap: max(limit, spent + held); what the store's CHECK compares with, so that a lowered limit is no error.
        version: Grows by one with every change; an audit replays the changes in this order.
    """

    id: int
    account: str
    kind: str
    start_us: int
    end_us: int
    limit_id: int
    limit: int
    hard: bool
    spent: int = 0
    held: int = 0
    cap: int = 0
    version: int = 0

    def touch(self) -> int:
        """Count a change; returns its version."""
        committed = self.spent + self.held
        self.cap = max(committed, self.limit)
        self.version += 1
        return self.version

    @property
    def room(self) -> int:
        """What may still be held; of a budget that refuses nothing, what can be counted."""
        return (self.limit if self.hard else MAX) - self.spent - self.held


@dataclass(slots=True, eq=False)
class Budget:
    """A budget that is in force, and the window that it is in now (None before it was first needed)."""

    kind: str
    limit_id: int
    limit: int
    hard: bool
    timezone: str
    window: Window | None = None

    @property
    def calendar(self) -> WindowKind:
        """The window's kind as the calendar knows it; a grant has none."""
        return self.kind  # type: ignore[return-value]


@dataclass(slots=True, eq=False)
class Rate:
    """A limit per minute and its state, see `domain.limits`."""

    limit: int
    tat: int = 0
    lows: list[Low] = field(default_factory=list[Low])

    @classmethod
    def of(cls, limit: int, state: str) -> Rate:
        """The limit, its state read from a store. Raises `ValueError` for what is none."""
        tat, *lows = state.split()
        return cls(
            limit, int(tat), [(int(at), int(low)) for at, _, low in (pair.partition(":") for pair in lows)]
        )

    @property
    def state(self) -> str:
        """In decimal: scaled by the limit, a TAT outgrows a store's 64 bits from about 10,000 a minute on."""
        return " ".join((str(self.tat), *(f"{at}:{low}" for at, low in self.lows)))


@dataclass(slots=True, eq=False)
class Account:
    """An organization, project or key, with what limits it."""

    id: str
    kind: AccountKind
    name: str
    parent: Account | None
    created_us: int
    budgets: dict[str, Budget] = field(default_factory=dict[str, Budget])
    requests: Rate | None = None
    tokens: Rate | None = None
    concurrency: int | None = None
    in_flight: int = 0


@dataclass(slots=True, eq=False)
class Key:
    """A key: what it may do, and `path`, the accounts that every request of it counts on.

    `revoked_us` may lie ahead: a key that was rotated works until then.
    """

    id: str
    digest: bytes
    prefix: str
    name: str
    scopes: frozenset[str]
    models: frozenset[str] | None
    max_output: int | None
    created_us: int
    expires_us: int
    revoked_us: int | None
    path: tuple[Account, Account, Account]

    @property
    def ends_us(self) -> int:
        """When it ends or ended."""
        return self.expires_us if self.revoked_us is None else min(self.expires_us, self.revoked_us)

    @property
    def budgeted(self) -> bool:
        """Whether a hard budget or credit applies, so that an unpriced model is refused."""
        return any(budget.hard for account in self.path for budget in account.budgets.values())


class Take(msgspec.Struct, array_like=True):
    """What a hold took from a rate limit, to be given back once; `tat` is what the taking left (`Rate.state`)."""

    account: str
    kind: str
    limit: int
    units: int
    tat: str


class Part(msgspec.Struct, array_like=True):
    """A window that a hold is pinned to, and the window's version at each step of the hold.

    Of a grant of credit, `amounts` says what was drawn at each of those versions, and `captured` what fell on it
    in the end; of a budget both are None: there every step of the hold counts whole.
    """

    window: int
    versions: list[int]
    amounts: list[int] | None = None
    captured: int | None = None


class Hold(msgspec.Struct, array_like=True):
    """An admitted request that has not ended. Packed into one row.

    Attributes:
        price: The pinned version's id; None where the model is free for the key.
        bound: The most of each dimension; its output is what the hold covers.
        retired: Has no meaning any more; rows of before have a number here.
        retired_too: The same.
        most: Output tokens that the request may make at most.
        steps: What each step (admission, extensions) added; they sum to `held`, in every part.
        incarnation: Which life of which worker works on it.
        tags: Those of a request that was admitted before tags were set aside.
        waive: Nobody pays where a crash breaks it off.
        personal: The hash of what was set aside of the request, see `personal`; None where nothing was.
    """

    request_id: str
    key_id: str
    model: str
    task: str
    price: str | None
    bound: Counts
    retired: int
    retired_too: int
    most: int
    held: int
    steps: list[int]
    parts: list[Part]
    takes: list[Take]
    worker: int
    incarnation: str
    admitted_us: int
    claim: str | None = None
    retry_of: str | None = None
    tags: dict[str, str] = {}
    waive: bool = False
    personal: bytes | None = None

    def detail(self, attempts: bytes) -> Detail:
        """What its record keeps of it."""
        return Detail(
            attempts, self.tags, self.bound, self.steps, self.parts, self.worker, self.retry_of, self.personal
        )


class Detail(msgspec.Struct, array_like=True):
    """What a record keeps besides its columns: enough to replay every window it touched.

    Attributes:
        attempts: Packed `Attempt`s, as the worker sent them.
        tags: Those of a request that was admitted before tags were set aside.
        bound: What the hold was taken for.
        steps: What each step of the hold added.
        parts: The windows it was pinned to; the last version of each is that of the capture.
        personal: The hash of what was set aside of the request, see `personal`; None where nothing was.
    """

    attempts: bytes
    tags: dict[str, str]
    bound: Counts
    steps: list[int]
    parts: list[Part]
    worker: int
    retry_of: str | None = None
    personal: bytes | None = None


@dataclass(slots=True)
class ClaimRow:
    """An idempotency claim: `state` is open, stored, released or spent."""

    project: str
    key: str
    fingerprint: bytes
    request_id: str
    state: str
    expires_us: int
    reruns: int = 0

    def forgotten(self, now_us: int) -> bool:
        """Whether its day is over; not while its request runs, whatever a clock that jumps says."""
        return self.state != "open" and self.expires_us <= now_us


@dataclass(slots=True)
class Ended:
    """How a request that is no longer open ended; price None and cost 0 for a void."""

    cost: int
    overrun: int
    price: str | None


@dataclass
class Head:
    """Where the store stands: numbers that go on, the last link of the chain, the last committed time."""

    batch: int = 0
    link: bytes = field(default=b"", compare=False)
    at_us: int = 0
    records: int = 0
    windows: int = 0
    limits: int = 0
    entries: int = 0


@dataclass
class Loaded:
    """Everything that a store hands over at start."""

    head: Head
    accounts: dict[str, Account]
    keys: dict[str, Key]
    prices: list[PriceVersion]
    windows: dict[int, Window]
    holds: dict[str, Hold]


class Writes(msgspec.Struct):
    """What one batch changes: plain tuples in the order of `rows`, ready for a driver.

    Attributes:
        admitted: How many holds it opened.
        extended: How many it extended.
        windows: Windows that changed, by id.
        opened: Ids of those among them that are new.
        rates: Accounts whose rate state changed, by id.
        holds: Holds to be written, by request id.
        closed: Ids of holds to be deleted.
        rows: Rows to be inserted, by table.
        revoked: (time, key id) of keys to be ended.
        claims: Claims to be written, by project and key.
        answers: (document, until) to be kept for replay, by request id.
        ended: How requests ended in this batch: the store cannot say so yet.
        cursors: (position or None, time) of consumers whose cursor is set by hand or removed.
        erased: Places in `personal` of rows to be erased.
    """

    admitted: int = 0
    extended: int = 0
    windows: dict[int, Window] = {}
    opened: set[int] = set()
    rates: dict[str, Account] = {}
    holds: dict[str, Hold] = {}
    closed: list[str] = []
    rows: dict[str, list[tuple[Any, ...]]] = {}
    revoked: list[tuple[int, str]] = []
    claims: dict[tuple[str, str], ClaimRow] = {}
    answers: dict[str, tuple[bytes, int]] = {}
    ended: dict[str, Ended] = {}
    cursors: dict[str, tuple[int | None, int]] = {}
    erased: list[tuple[int, str]] = []

    def __bool__(self) -> bool:
        """Whether anything is to be written."""
        return bool(
            self.holds or self.closed or self.windows or self.rows or self.rates or self.revoked or self.claims
        )

    def insert(self, table: str, row: tuple[Any, ...]) -> None:
        """Add a row of a table."""
        self.rows.setdefault(table, []).append(row)


__all__ = [
    "CREDIT",
    "FOREVER",
    "Account",
    "Budget",
    "ClaimRow",
    "Counts",
    "Detail",
    "Ended",
    "Head",
    "Hold",
    "Key",
    "Loaded",
    "Part",
    "Rate",
    "Take",
    "Window",
    "Writes",
]

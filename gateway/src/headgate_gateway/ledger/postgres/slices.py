"""What one batch needs of the store, read under its locks, as a `State` that the ledger's rules run on.

Every fact that the rules may change or rely on belongs to an organization that the batch has locked, so a slice
is as good as the whole. May import state, book, schema and psycopg.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, Final

import msgspec
import psycopg

from headgate_gateway.domain.commands import AccountKind
from headgate_gateway.domain.price_book import PriceBook
from headgate_gateway.domain.pricing import PriceVersion, Terms
from headgate_gateway.ledger.book import (
    Account,
    Budget,
    ClaimRow,
    Ended,
    Head,
    Hold,
    Key,
    Loaded,
    Rate,
    Window,
)
from headgate_gateway.ledger.packing import pack
from headgate_gateway.ledger.personal import Place
from headgate_gateway.ledger.postgres import arrays
from headgate_gateway.ledger.state import State

MOST_KNOWN: Final = 200_000
"""Accounts whose immutable facts are remembered."""

Row = tuple[Any, ...]
Cursor = psycopg.Cursor[Row]

_HOLD: Final = msgspec.msgpack.Decoder(Hold)
_TERMS: Final = msgspec.json.Decoder(Terms)

_PATHS: Final = (
    "WITH RECURSIVE up AS ("
    "SELECT id, kind, name, parent, created_us FROM accounts WHERE id = ANY(%s::text[]) "
    "UNION SELECT a.id, a.kind, a.name, a.parent, a.created_us FROM accounts a JOIN up ON a.id = up.parent) "
    "SELECT id, kind, name, parent, created_us FROM up"
)
_KEYS: Final = (
    "SELECT id, digest, prefix, scopes, models, max_output, expires_us, revoked_us FROM api_keys "
    "WHERE id = ANY(%s::text[])"
)
_COUNTERS: Final = "SELECT account, packed FROM counters WHERE account = ANY(%s::text[])"
_WINDOWS: Final = (
    "SELECT id, account, kind, start_us, end_us, limit_id, amount, hard, spent, held, cap, version FROM windows "
    "WHERE id IN (SELECT unnest(windows) FROM counters WHERE account = ANY(%s::text[]) "
    "UNION SELECT unnest(windows) FROM holds WHERE request_id = ANY(%s::text[]))"
)
_HOLDS: Final = "SELECT packed FROM holds WHERE request_id = ANY(%s::text[])"
_CLAIM: Final = (
    "SELECT c.project, c.key, c.fingerprint, c.request_id, c.state, c.expires_us, c.reruns FROM claims c"
)
_CLAIMS: Final = (
    f"{_CLAIM} JOIN unnest(%s::text[], %s::text[]) AS wanted (project, key) "
    "ON c.project = wanted.project AND c.key = wanted.key "
    f"UNION {_CLAIM} JOIN holds h ON h.project = c.project AND h.claim = c.key "
    "WHERE h.request_id = ANY(%s::text[])"
)
_SET_ASIDE: Final = (
    "SELECT at_us, request_id FROM personal "
    "JOIN unnest(%s::bigint[], %s::text[]) AS wanted (at_us, request_id) USING (at_us, request_id)"
)
_PRICES: Final = "SELECT seq, id, model, scope, source, rates, at_us FROM prices WHERE seq > %s ORDER BY seq"


class BudgetCell(msgspec.Struct, array_like=True):
    """A budget in force, and the window that it is in."""

    kind: str
    limit_id: int
    limit: int
    hard: bool
    timezone: str
    window: int | None


class RateCell(msgspec.Struct, array_like=True):
    """A limit per minute and its state, see `book.Rate`."""

    limit: int
    state: str


class Counters(msgspec.Struct, array_like=True):
    """All that changes of an account: one packed row."""

    in_flight: int = 0
    concurrency: int | None = None
    requests: RateCell | None = None
    tokens: RateCell | None = None
    budgets: list[BudgetCell] = []


_COUNTERS_ROW: Final = msgspec.msgpack.Decoder(Counters)


class Wanted(msgspec.Struct):
    """What the operations of a batch name.

    Attributes:
        keys: Key ids.
        accounts: Accounts besides those on the keys' paths.
        requests: Request ids.
        claims: (project, key) of idempotency keys.
        prices: Whether versions of prices will be made.
    """

    keys: set[str] = set()
    accounts: set[str] = set()
    requests: set[str] = set()
    claims: set[tuple[str, str]] = set()
    prices: bool = False


class Directory:
    """What never changes about accounts, remembered: their names, parents and ages."""

    def __init__(self) -> None:
        self._known: dict[str, Row] = {}

    def learn(self, db: psycopg.Connection, ids: Iterable[str]) -> None:
        """Look up the accounts among `ids` that are not known yet, with their parents."""
        asked = list(ids)
        missing = [id_ for id_ in asked if id_ not in self._known]
        if not missing:
            return
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
            missing = asked
        found = db.execute(_PATHS, (arrays.texts(missing),)).fetchall()
        self._known.update({row[0]: row for row in found})  # at once: other threads read paths meanwhile

    def path(self, id_: str) -> tuple[str, ...]:
        """An account and those above it, up to its organization; empty when there is no such account."""
        found: list[str] = []
        at: str | None = id_
        while at is not None and (row := self._known.get(at)) is not None:
            found.append(at)
            at = row[3]
        return tuple(found)

    def organization(self, id_: str) -> str | None:
        """The organization above an account; None when the account is not known."""
        path = self.path(id_)
        return path[-1] if path else None

    def account(self, id_: str, made: dict[str, Account]) -> Account:
        """The account with its parents, each made once."""
        if (known := made.get(id_)) is not None:
            return known
        _, kind, name, parent, created = self._known[id_]
        above = None if parent is None else self.account(parent, made)
        kind_: AccountKind = kind
        account = made[id_] = Account(id_, kind_, name, above, created)
        return account


class Prices:
    """Every price version that was ever read; they are immutable, so only newer ones are asked for."""

    def __init__(self) -> None:
        self.seq = 0
        self.book = PriceBook()

    def forget(self) -> None:
        """Read them all again: a batch that made one was taken back."""
        self.seq, self.book = 0, PriceBook()


class Gap:
    """What a slice lacks, asked for when the rules want it: replays and resends, which are rare."""

    def __init__(self, db: psycopg.Connection, asked: Collection[tuple[str, str]] = ()) -> None:
        self._db = db
        self.claims: dict[tuple[str, str], ClaimRow | None] = dict.fromkeys(asked)

    def claim(self, project: str, key: str) -> ClaimRow | None:
        """See `state.Lookup`."""
        if (project, key) in self.claims:
            return self.claims[project, key]
        row = self._db.execute(f"{_CLAIM} WHERE c.project = %s AND c.key = %s", (project, key)).fetchone()
        return None if row is None else ClaimRow(*row)

    def answer(self, request_id: str, now_us: int) -> bytes | None:
        """See `state.Lookup`."""
        row = self._db.execute(
            "SELECT answer FROM answers WHERE request_id = %s AND expires_us > %s", (request_id, now_us)
        ).fetchone()
        return None if row is None else row[0]

    def ended(self, request_id: str) -> Ended | None:
        """See `state.Lookup`."""
        row = self._db.execute(
            "SELECT cost, overrun, price FROM usage_records WHERE request_id = %s "
            "UNION ALL SELECT 0, 0, NULL FROM voids WHERE request_id = %s LIMIT 1",
            (request_id, request_id),
        ).fetchone()
        return None if row is None else Ended(*row)

    def set_aside(self, places: Collection[Place]) -> list[Place]:
        """See `state.Lookup`."""
        times, requests = [at_us for at_us, _ in places], [request_id for _, request_id in places]
        return self._db.execute(_SET_ASIDE, (arrays.integers(times), arrays.texts(requests))).fetchall()


class Slice:
    """The queries of a slice, sent; `state` reads their results.

    Make it inside a pipeline, after the locks; ask for the state once the pipeline is through.

    Args:
        db: The connection.
        wanted: What is needed. The directory must know its keys and accounts.
        directory: Immutable facts.
        prices: Versions read so far.
    """

    def __init__(self, db: psycopg.Connection, wanted: Wanted, directory: Directory, prices: Prices) -> None:
        self._directory = directory
        self._prices = prices
        self.gap = Gap(db, wanted.claims)
        self._accounts = dict.fromkeys(
            id_ for wanted_id in (*wanted.keys, *wanted.accounts) for id_ in directory.path(wanted_id)
        )
        accounts, requests = arrays.texts(self._accounts), arrays.texts(wanted.requests)
        self._keys: Cursor = db.execute(_KEYS, (arrays.texts(wanted.keys),))
        self._counters: Cursor = db.execute(_COUNTERS, (accounts,))
        self._holds: Cursor | None = None
        self._claims: Cursor | None = None
        if wanted.requests:
            self._holds = db.execute(_HOLDS, (requests,))
        if wanted.requests or wanted.claims:
            projects, keys = [project for project, _ in wanted.claims], [key for _, key in wanted.claims]
            self._claims = db.execute(_CLAIMS, (arrays.texts(projects), arrays.texts(keys), requests))
        self._windows: Cursor = db.execute(_WINDOWS, (accounts, requests))
        self._versions: Cursor = db.execute(_PRICES, (prices.seq,))
        self.before: dict[str, bytes] = {}
        """Counters as they were read, packed, by account."""

    def state(self, head: Head, salt: Callable[[], bytes] | None = None) -> State:
        """The rules on what was read; see `State` for `salt`."""
        windows = {row[0]: Window(*row) for row in self._windows}
        for window in windows.values():
            window.hard = bool(window.hard)
        accounts: dict[str, Account] = {}
        for id_ in self._accounts:
            self._directory.account(id_, accounts)
        keys = {row[0]: self._key(row, accounts) for row in self._keys if row[0] in accounts}
        held = [] if self._holds is None else [_HOLD.decode(packed) for (packed,) in self._holds]
        for row in self._claims or ():
            claim = ClaimRow(*row)
            self.gap.claims[claim.project, claim.key] = claim
        holds = {hold.request_id: hold for hold in held if hold.key_id in keys}
        state = State(Loaded(replace(head), accounts, keys, [], windows, holds), self.gap, salt)
        self._fill_counters(accounts, windows)
        self._fill_prices(state)
        return state

    def _fill_counters(self, accounts: dict[str, Account], windows: dict[int, Window]) -> None:
        for account in accounts.values():
            account.in_flight = 0  # State counted what was loaded; the row counts all there are
        for id_, packed in self._counters:
            self.before[id_] = packed
            unpack_counters(accounts[id_], _COUNTERS_ROW.decode(packed), windows)

    def _fill_prices(self, state: State) -> None:
        state.prices = self._prices.book
        for seq, id_, model, scope, source, rates, at_us in self._versions:
            terms = _TERMS.decode(rates)
            version = PriceVersion(
                id=id_, model=model, scope=scope, source=source, effective_us=at_us,
                **msgspec.structs.asdict(terms),
            )  # fmt: skip
            self._prices.seq = seq
            state.prices.add(version)

    def _key(self, row: Row, accounts: dict[str, Account]) -> Key:
        id_, digest, prefix, scopes, models, max_output, expires, revoked = row
        account = accounts[id_]
        project = account.parent
        assert project is not None
        assert project.parent is not None
        return Key(
            id_, digest, prefix, account.name, frozenset(msgspec.json.decode(scopes)),
            None if models is None else frozenset(msgspec.json.decode(models)), max_output,
            account.created_us, expires, revoked, (account, project, project.parent),
        )  # fmt: skip


def unpack_counters(account: Account, counters: Counters, windows: dict[int, Window]) -> None:
    """Set an account's limits and what is in use of them."""
    account.in_flight = counters.in_flight
    account.concurrency = counters.concurrency
    account.requests = None if (cell := counters.requests) is None else Rate.of(cell.limit, cell.state)
    account.tokens = None if (cell := counters.tokens) is None else Rate.of(cell.limit, cell.state)
    for budget in counters.budgets:
        window = None if budget.window is None else windows.get(budget.window)
        account.budgets[budget.kind] = Budget(
            budget.kind, budget.limit_id, budget.limit, budget.hard, budget.timezone, window
        )


def pack_counters(account: Account) -> tuple[bytes, list[int]]:
    """The packed row of an account, and the windows that its budgets are in."""
    cells = [
        BudgetCell(b.kind, b.limit_id, b.limit, b.hard, b.timezone, None if b.window is None else b.window.id)
        for b in account.budgets.values()
    ]
    counters = Counters(
        account.in_flight, account.concurrency,
        None if (rate := account.requests) is None else RateCell(rate.limit, rate.state),
        None if (rate := account.tokens) is None else RateCell(rate.limit, rate.state), cells,
    )  # fmt: skip
    return pack(counters), [cell.window for cell in cells if cell.window is not None]


def organizations(directory: Directory, wanted: Wanted) -> Collection[str]:
    """The organizations that a batch touches."""
    above = (directory.organization(id_) for id_ in (*wanted.keys, *wanted.accounts))
    return {id_ for id_ in above if id_ is not None}

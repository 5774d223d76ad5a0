"""What the store on SQLite has, as a ledger takes it into memory. May import book, recent.

Windows, rates and holds are read with the ring laid over their tables, see `recent`.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from headgate_gateway.domain.pricing import PriceVersion, Terms
from headgate_gateway.ledger.book import Account, Budget, Head, Key, Loaded, Rate, Window
from headgate_gateway.ledger.store import recent

_TERMS: Final = msgspec.json.Decoder(Terms)


def load(db: sqlite3.Connection, present: recent.Present) -> Loaded:
    """Everything, as it was last committed."""
    stands = head(db)
    accounts = _accounts(db)
    keys = _keys(db, accounts)
    windows = _windows(present, stands.at_us)
    _fill_limits(db, accounts, windows)
    _fill_rates(accounts, present)
    holds = {hold.request_id: hold for hold in present.holds()}
    return Loaded(stands, accounts, keys, _prices(db), windows, holds)


def head(db: sqlite3.Connection) -> Head:
    """Where a store stands."""
    row = db.execute("SELECT number, link, at_us FROM links ORDER BY number DESC LIMIT 1").fetchone()
    found = Head(*row) if row else Head()
    found.records = db.execute("SELECT coalesce(max(seq), 0) FROM usage_records").fetchone()[0]
    found.windows = db.execute("SELECT coalesce(max(id), 0) FROM windows").fetchone()[0]
    found.limits = db.execute("SELECT coalesce(max(id), 0) FROM limits").fetchone()[0]
    found.entries = db.execute("SELECT coalesce(max(id), 0) FROM audit_log").fetchone()[0]
    return found


def _accounts(db: sqlite3.Connection) -> dict[str, Account]:
    accounts: dict[str, Account] = {}
    for id_, kind, name, parent, created in db.execute(
        "SELECT id, kind, name, parent, created_us FROM accounts "
        "ORDER BY CASE kind WHEN 'organization' THEN 0 WHEN 'project' THEN 1 ELSE 2 END"
    ):
        accounts[id_] = Account(id_, kind, name, accounts[parent] if parent else None, created)
    return accounts


def _keys(db: sqlite3.Connection, accounts: dict[str, Account]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for id_, digest, prefix, scopes, models, max_output, expires, revoked in db.execute(
        "SELECT id, digest, prefix, scopes, models, max_output, expires_us, revoked_us FROM api_keys"
    ):
        account = accounts[id_]
        project = account.parent
        assert project is not None
        assert project.parent is not None
        keys[id_] = Key(
            id_, digest, prefix, account.name, frozenset(msgspec.json.decode(scopes)),
            None if models is None else frozenset(msgspec.json.decode(models)), max_output,
            account.created_us, expires, revoked, (account, project, project.parent),
        )  # fmt: skip
    return keys


def _prices(db: sqlite3.Connection) -> list[PriceVersion]:
    return [
        PriceVersion(
            id=id_,
            model=model,
            scope=scope,
            source=source,
            effective_us=at,
            **msgspec.structs.asdict(terms),
        )
        for id_, model, scope, source, packed, at in db.execute(
            "SELECT id, model, scope, source, rates, at_us FROM prices ORDER BY batch, rowid"
        )
        for terms in (_TERMS.decode(packed),)
    ]


def _windows(present: recent.Present, at_us: int) -> dict[int, Window]:
    rows = [*present.windows(at_us), *present.ended(at_us)]
    windows = {row[0]: Window(*row) for row in sorted(rows)}
    for window in windows.values():
        window.hard = bool(window.hard)
    return windows


def _fill_limits(db: sqlite3.Connection, accounts: dict[str, Account], windows: dict[int, Window]) -> None:
    open_at: dict[int, int | None] = {}
    for id_, account_id, kind, amount, hard, timezone, window_id in db.execute(
        "SELECT id, account, kind, amount, hard, timezone, window_id FROM limits ORDER BY id"
    ):
        account = accounts[account_id]
        if kind == "concurrency":
            account.concurrency = amount
        elif kind == "requests":
            account.requests = None if amount is None else Rate(amount)
        elif kind == "tokens":
            account.tokens = None if amount is None else Rate(amount)
        elif amount is None:
            account.budgets.pop(kind, None)
        else:
            account.budgets[kind] = Budget(kind, id_, amount, bool(hard), timezone)
            open_at[id_] = window_id
    for window in windows.values():  # one of a budget that was lifted since belongs to none, whatever its amount
        budget = accounts[window.account].budgets.get(window.kind)
        if budget is not None and (window.limit_id == budget.limit_id or window.id == open_at[budget.limit_id]):
            budget.window = window


def _fill_rates(accounts: dict[str, Account], present: recent.Present) -> None:
    for account_id, requests_limit, requests_state, tokens_limit, tokens_state in present.rates():
        account = accounts[account_id]
        if (rate := account.requests) is not None and rate.limit == requests_limit and requests_state:
            account.requests = Rate.of(rate.limit, requests_state)
        if (rate := account.tokens) is not None and rate.limit == tokens_limit and tokens_state:
            account.tokens = Rate.of(rate.limit, tokens_state)

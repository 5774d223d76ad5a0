"""What the books answer: records, budgets, accounts, keys, prices. See `answers`; may import it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headgate_gateway.http.answers import Amount, Closed

Moment = str
"""RFC 3339, UTC."""


class RecordedAttempt(Closed):
    """One try at one target."""

    backend: str
    target: str
    outcome: str
    started_at: Moment
    ended_at: Moment


class UsageRecord(Closed):
    """One request that has ended; `erased` where it had tags which were erased.

    `seq`, `held` and `overrun` are for operators.
    """

    request_id: str
    organization: str
    project: str
    key: str
    model: str
    task: str
    backend: str
    outcome: str
    usage: dict[str, int]
    usage_source: str
    cost: Amount
    price: str | None
    billed: bool
    flagged: bool
    created_at: Moment
    first_byte_at: Moment | None
    finished_at: Moment
    idempotency_key: str | None
    retry_of: str | None
    tags: dict[str, str]
    erased: bool
    attempts: list[RecordedAttempt]
    seq: int = 0
    held: Amount = ""
    overrun: Amount = ""


class UsageTotal(msgspec.Struct, kw_only=True):
    """Sums of a group and a bucket of time; a tag that was grouped by is a member named `tag:NAME`."""

    requests: int
    cost: Amount
    usage: dict[str, int]
    model: str | None = None
    key: str | None = None
    project: str | None = None
    organization: str | None = None
    backend: str | None = None
    outcome: str | None = None
    bucket: Moment | None = None
    overrun: Amount | None = None


class UsageRecords(Closed):
    """A page of records. Those finished by `archived_until` are in the archive, and not here."""

    object: Literal["list"]
    data: list[UsageRecord]
    has_more: bool
    after: str | None
    archived_until: Moment | None


class UsageTotals(Closed):
    """Totals, where `group_by` or `bucket` was asked for, of what was finished after `archived_until`."""

    object: Literal["list"]
    data: list[UsageTotal]
    has_more: bool
    after: str | None
    archived_until: Moment | None


class Budget(Closed):
    """A budget and where its present window stands. `kind` is a window, or `credit` for what was prepaid."""

    kind: str
    limit: Amount
    spent: Amount
    held: Amount
    hard: bool
    timezone: str
    starts_at: Moment
    ends_at: Moment | None
    priority: int | None


class BudgetOver(Budget):
    """A budget that a key is under, and the account that it belongs to."""

    scope: str
    account: str
    remaining: Amount


class LimitOver(Closed):
    """A limit that a key is under: a rate per minute, or requests in flight."""

    scope: str
    account: str
    kind: Literal["requests", "tokens", "concurrency"]
    limit: int


class AccountLimits(Closed):
    """The budgets and limits that a key is under."""

    object: Literal["limits"]
    budgets: list[BudgetOver]
    limits: list[LimitOver]


# -- what operators see


class Account(Closed):
    """An organization, a project or a key."""

    id: str
    kind: Literal["organization", "project", "key"]
    name: str
    parent: str | None
    created_at: Moment
    budgets: list[Budget]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    in_flight: int


class AccountList(Closed):
    """A page of accounts."""

    object: Literal["list"]
    data: list[Account]
    has_more: bool
    after: str | None


class Credit(Closed):
    """A grant of prepaid credit: what was granted, and what is spent and held of it."""

    account: str
    name: str
    amount: str
    spent: str
    held: str
    priority: int
    expires_at: Moment | None


class CreditList(Closed):
    """A page of grants that have not expired; an account's in the order in which they burn."""

    object: Literal["list"]
    data: list[Credit]
    has_more: bool
    after: str | None


class Key(Closed):
    """A key, never its secret."""

    id: str
    name: str
    prefix: str
    project: str
    project_id: str
    organization_id: str
    scopes: list[str]
    models: list[str] | None
    max_output: int | None
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None
    account: Account


class KeyList(Closed):
    """A page of keys."""

    object: Literal["list"]
    data: list[Key]
    has_more: bool
    after: str | None


class KeyCreated(Closed):
    """A fresh key; its secret is shown this once. `project` and `organization` are ids."""

    id: str
    key: str
    project: str
    organization: str


class Done(Closed):
    """The command was carried out; `changed` is false when it was so already."""

    id: str
    changed: bool


class PriceVersion(msgspec.Struct, kw_only=True):
    """A price version; empty `rates` withdraw the price.

    `margin` is percent on what everyone pays (for everyone: on the default), and in the rates already.
    """

    id: str
    model: str
    rates: dict[str, Any]
    source: Literal["key", "organization", "admin", "config", "plugin"]
    scope: str
    effective_at: Moment
    margin: str | None


class PriceListed(PriceVersion, kw_only=True):
    """A price version in a list."""

    state: Literal["in_force", "coming", "past", "replaced"]


class PriceList(Closed):
    """A page of price versions: those in force and those to come, with `history` also those that are over."""

    object: Literal["list"]
    data: list[PriceListed]
    has_more: bool
    after: str | None


class PricesSet(Closed):
    """The price versions that are new: what was asked for, and margins that follow it."""

    versions: list[PriceVersion]


class TagsErased(Closed):
    """Of how many requests the tags were erased; `after` is where to go on, null when that was all.

    `copies` are files beside the store, made before migrations, which still have them.
    """

    erased: int
    after: str | None
    copies: list[str]


class LogEntry(Closed):
    """What somebody did: `actor` did `action` to `target`; `detail` is what was asked for."""

    id: int
    at: Moment
    actor: str
    action: str
    target: str
    detail: dict[str, Any]


class LogPage(Closed):
    """A page of the audit log."""

    object: Literal["list"]
    data: list[LogEntry]
    has_more: bool
    after: str | None


class Consumer(Closed):
    """A consumer of usage records: the place of the last one that it has taken, and how far it is behind.

    `oldest_at` is when the oldest of those that it has not taken was finished, `error` why it comes no further.
    """

    name: str
    position: int
    behind: int
    oldest_at: Moment | None
    error: str


class ConsumerList(Closed):
    """All consumers, by name."""

    object: Literal["list"]
    data: list[Consumer]
    has_more: bool
    after: str | None


class AuditReport(msgspec.Struct, kw_only=True):
    """Whether everything re-derives, where the audit began, how much was checked, and the first difference."""

    ok: bool
    checked: dict[str, int]
    first_difference: str | None
    began: str

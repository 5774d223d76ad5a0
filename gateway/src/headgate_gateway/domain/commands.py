"""Administrative commands: what people change in the ledger, and what it answers. Executed inside the ledger.

May import admission, budgets, erasing, pricing. Amounts are decimal texts, because that is how people state them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from headgate_gateway.domain.admission import Nano
from headgate_gateway.domain.budgets import WindowKind
from headgate_gateway.domain.erasing import Erased, ErasePersonal
from headgate_gateway.domain.keeping import KeepArchive, KeepSeal, NoteModel
from headgate_gateway.domain.price_book import PriceState
from headgate_gateway.domain.pricing import PriceVersion, Quote

AccountKind = Literal["organization", "project", "key"]
LimitKind = Literal["requests", "tokens", "concurrency"]
Scope = Literal["inference", "usage", "admin"]

Moment = Annotated[int, msgspec.Meta(extra_json_schema={"format": "moment"})]
"""Microseconds UTC. The format is for who describes commands: over HTTP a time is taken as a text too."""

DEFAULT_SCOPES: frozenset[str] = frozenset({"inference", "usage"})


class Create(msgspec.Struct, frozen=True, kw_only=True, tag="create_key"):
    """Make a key, and its project and organization when they are missing.

    The secret is made by whoever asks and only its digest travels, so that a resent command makes nothing twice
    and the ledger's files and logs never see a key.

    Attributes:
        id: `key_...`, made by whoever asks.
        digest: HMAC-SHA-256 of the secret under the pepper.
        prefix: The first characters, for people.
    """

    id: str
    digest: bytes
    prefix: str
    project: str
    organization: str = "default"
    budget: str | None = None
    timezone: str = "UTC"
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    models: frozenset[str] | None = None
    scopes: frozenset[str] = DEFAULT_SCOPES
    expires_at: int | None = None
    max_output: int | None = None
    name: str = ""


class CreateKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller states of a key that is to be made; `LedgerClient.command` turns it into a `Create`.

    Attributes:
        project: Name of the project, made when it is missing.
        organization: Name of the organization, made when it is missing.
        budget: `AMOUNT/WINDOW`, a hard budget of the key itself.
        timezone: IANA zone whose calendar the budget's windows follow.
        rpm: Requests per minute.
        tpm: Tokens per minute, input and output.
        concurrency: Requests in flight.
        models: Model ids that it may ask for; None allows all.
        scopes: `inference`, `usage`, `admin`.
        expires_at: Microseconds UTC.
        max_output: Output tokens per request at most.
        name: For people.
        any_model: Take `models` that no config names (yet).
    """

    project: str
    organization: str = "default"
    budget: str | None = None
    timezone: str = "UTC"
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    models: frozenset[str] | None = None
    scopes: frozenset[str] = DEFAULT_SCOPES
    expires_at: Moment | None = None
    max_output: int | None = None
    name: str = ""
    any_model: bool = False


class RevokeKey(msgspec.Struct, frozen=True, kw_only=True, tag="revoke_key"):
    """End a key at once. Answered when every connected worker has confirmed."""

    id: str


MOST_OVERLAP_S = 90 * 24 * 3600
"""How long a key may go on after it was rotated, at most."""


class Rotate(msgspec.Struct, frozen=True, kw_only=True, tag="rotate_key"):
    """The ledger's part of `RotateKey`: the secret is made by whoever asks and only its digest travels."""

    id: str
    successor: str
    digest: bytes
    prefix: str
    overlap_s: int = 0


class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller states of a rotation whose key is named elsewhere: seconds that the old one goes on."""

    overlap_s: int = 0


class RotateKey(msgspec.Struct, frozen=True, kw_only=True):
    """Make a key with the rights, limits, budgets and prices of an old one, and let the old one end.

    A budget of the key itself starts anew with the successor; those of project and organization go on. What is
    left of credit of the key itself goes over.

    Attributes:
        id: The old key.
        overlap_s: Seconds that it goes on working; 0 ends it at once.
    """

    id: str
    overlap_s: int = 0


class ListKeys(msgspec.Struct, frozen=True, kw_only=True, tag="list_keys"):
    """Keys in the order of their ids, `limit` (at most 1,000) of them after the id `after`."""

    project: str | None = None
    after: str = ""
    limit: int = 100


class ListAccounts(msgspec.Struct, frozen=True, kw_only=True, tag="list_accounts"):
    """Accounts with their budgets and limits, in the order of their ids; of one kind, or (None) of every."""

    after: str = ""
    limit: int = 100
    kind: AccountKind | None = None


class CreateAccount(msgspec.Struct, frozen=True, kw_only=True, tag="create_account"):
    """Make an organization or a project, if there is none of that name; answered with it either way.

    Attributes:
        name: What it is called.
        kind: `organization` or `project`.
        organization: Name or id of the project's organization, made when it is missing.
    """

    name: str
    kind: Literal["organization", "project"] = "project"
    organization: str = "default"


class OrganizationFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller states of an organization; see `CreateAccount`."""

    name: str


class ProjectFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller states of a project; see `CreateAccount`."""

    name: str
    organization: str = "default"


class GetAccount(msgspec.Struct, frozen=True, kw_only=True, tag="get_account"):
    """One account with its budgets and limits, by id, or by the name of a project or organization."""

    id: str


class SetBudget(msgspec.Struct, frozen=True, kw_only=True, tag="set_budget"):
    """Set, change or (with `amount` None) lift a budget of an account.

    What was spent before the account had a budget of this window does not count. A lowered budget only blocks
    new holds; those that stand may still be captured.

    Attributes:
        account: An id, or the name of a project or organization.
        amount: Decimal text, or None.
        window: Which one; an account has at most one budget of each window.
        hard: A soft budget is counted and shown, and refuses nothing.
        timezone: IANA zone whose calendar the windows follow.
    """

    account: str
    amount: str | None
    window: WindowKind
    hard: bool = True
    timezone: str = "UTC"


class SetLimit(msgspec.Struct, frozen=True, kw_only=True, tag="set_limit"):
    """Set or (None) lift a limit of an account: requests or tokens per minute, or requests in flight."""

    account: str
    kind: LimitKind
    amount: int | None


class SetPrice(msgspec.Struct, frozen=True, kw_only=True, tag="set_price"):
    """Make a new price version of a model; it is in force for every request admitted from then on.

    Attributes:
        model: The configured model id.
        rates: Decimal texts by rate (`input`, `output`, `request`, ...), with tiers and a minimum where there
            are any, see `pricing.Quote`; or `margin` alone, percent on what everyone pays (for everyone: on what
            config or plugins say); None withdraws the price.
        scope: A key's or organization's id or name for an override; empty for everyone.
        effective_from: When it begins, microseconds UTC; None for now. Never in the past. What is planned for
            the same moment in the same place gives way.
        any_model: Take a model that no config names (yet).
    """

    model: str
    rates: Quote | None
    scope: str = ""
    effective_from: Moment | None = None
    any_model: bool = False


class CancelPrice(msgspec.Struct, frozen=True, kw_only=True, tag="cancel_price"):
    """Let a planned price version not begin; one that has begun stays in history."""

    id: str


class ListPrices(msgspec.Struct, frozen=True, kw_only=True, tag="list_prices"):
    """Price versions in the order of their ids, `limit` (at most 1,000) of them after the id `after`.

    Attributes:
        model: Only this model's.
        history: Also those that are over; else what is in force and what is planned.
    """

    model: str | None = None
    history: bool = False
    after: str = ""
    limit: int = 100


class SyncPrices(msgspec.Struct, frozen=True, kw_only=True, tag="sync_prices"):
    """What the config says models cost. A changed price becomes a new version with source `config`.

    Attributes:
        models: Rates by model id; None for a model without a price. Models not named keep what they had.
        defaults: Models among them whose price comes from a plugin's table, not from the config.
        only_new: Change nothing that a config has said before: prices of models that no config has priced yet
            are taken, and one that differs from what is in force rejects the command.
    """

    models: Mapping[str, Quote | None]
    defaults: frozenset[str] = frozenset()
    only_new: bool = False


class GrantCredit(msgspec.Struct, frozen=True, kw_only=True, tag="grant_credit"):
    """Prepaid credit for an account: one more grant beside those it has, spent once and never reset.

    Grants burn by priority, then by what expires first, then by age.

    Attributes:
        account: An id, or the name of a project or organization.
        amount: Decimal text; a negative one is an adjustment that takes back what is neither spent nor held,
            from the grants that would burn last.
        priority: 0 to 9999; lower ones burn first.
        expires_at: Microseconds UTC; what is left then is gone, but for what requests in flight hold of it.
        note: For people; kept in the audit log.
    """

    account: str
    amount: str
    note: str = ""
    priority: int = 100
    expires_at: Moment | None = None


FARTHEST = 2**62
"""No record's place is beyond."""


class MoveCursor(msgspec.Struct, frozen=True, kw_only=True, tag="move_cursor"):
    """Set a consumer of usage records back or on, or forget it.

    Attributes:
        consumer: Its name.
        position: The place after which it goes on; None removes its cursor.
    """

    consumer: str
    position: int | None


_Common = (
    RevokeKey
    | ListKeys
    | ListAccounts
    | CreateAccount
    | GetAccount
    | SetBudget
    | SetLimit
    | SetPrice
    | CancelPrice
    | ListPrices
    | SyncPrices
    | GrantCredit
    | KeepSeal
    | KeepArchive
    | NoteModel
    | MoveCursor
    | ErasePersonal
)

Command = CreateKey | RotateKey | _Common
"""What callers hand to `LedgerClient.command`."""

WireCommand = Create | Rotate | _Common
"""What travels to the ledger."""


class KeyCreated(msgspec.Struct, frozen=True, kw_only=True):
    """The key, shown this once. `project` and `organization` are ids."""

    id: str
    key: str
    project: str
    organization: str


class Created(msgspec.Struct, frozen=True, kw_only=True, tag="created"):
    """The ledger's part of `KeyCreated`."""

    id: str
    project: str
    organization: str


class BudgetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A budget and where its present window stands.

    `kind` is a window, or `credit` for a grant of prepaid credit, which has a `priority` too and ends when it
    expires.
    """

    kind: str
    limit: Nano
    spent: Nano
    held: Nano
    hard: bool
    timezone: str
    starts_at: int
    ends_at: int | None
    priority: int | None = None


class AccountInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An account as lists show it."""

    id: str
    kind: AccountKind
    name: str
    parent: str | None
    created_at: int
    budgets: tuple[BudgetInfo, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    in_flight: int = 0


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A key as lists show it: never the key itself."""

    id: str
    name: str
    prefix: str
    project: str
    project_id: str
    organization_id: str
    scopes: frozenset[str]
    models: frozenset[str] | None
    max_output: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    account: AccountInfo


class KeyPage(msgspec.Struct, frozen=True, kw_only=True, tag="keys"):
    """Answer to `ListKeys`; `after` is where the next page starts, None on the last."""

    keys: tuple[KeyInfo, ...]
    after: str | None = None


class AccountPage(msgspec.Struct, frozen=True, kw_only=True, tag="accounts"):
    """Answer to `ListAccounts`."""

    accounts: tuple[AccountInfo, ...]
    after: str | None = None


class AccountFound(msgspec.Struct, frozen=True, kw_only=True, tag="account"):
    """Answer to `GetAccount` and `CreateAccount`."""

    account: AccountInfo


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The command was carried out.

    `id` names what it made or touched; `changed` is False when it was so already.
    """

    id: str = ""
    changed: bool = True


class PricesSet(msgspec.Struct, frozen=True, kw_only=True, tag="prices"):
    """Answer to `SetPrice` and `SyncPrices`: the versions that are new."""

    versions: tuple[PriceVersion, ...] = ()


class PriceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A price version as lists show it."""

    version: PriceVersion
    state: PriceState


class PriceList(msgspec.Struct, frozen=True, kw_only=True, tag="price_list"):
    """Answer to `ListPrices`; `after` is where the next page starts, None on the last."""

    prices: tuple[PriceInfo, ...]
    after: str | None = None


RejectionCode = Literal["invalid", "not_found", "unavailable"]


class Rejected(msgspec.Struct, frozen=True, kw_only=True, tag="rejected"):
    """The command was not carried out.

    Attributes:
        code: `invalid`, `not_found` or `unavailable`.
        message: Which field, what was found, what was expected.
        field: The field's name, where one is at fault.
    """

    code: RejectionCode
    message: str
    field: str | None = None


WireResult = Created | KeyPage | AccountPage | AccountFound | Done | Erased | PricesSet | PriceList | Rejected
Result = KeyCreated | KeyPage | AccountPage | AccountFound | Done | Erased | PricesSet | PriceList | Rejected
"""What `LedgerClient.command` returns."""

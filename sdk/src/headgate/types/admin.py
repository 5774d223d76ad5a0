"""What operators set and see: accounts, keys, budgets, limits, prices, credits, models, consumers, the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Required, TypedDict

from pydantic import Field

from headgate.types.shared import Answer, Wire

Window = Literal["total", "hour", "day", "week", "month"]
LimitKind = Literal["requests", "tokens", "concurrency"]


class KeyFields(TypedDict, total=False):
    """A key that is to be made.

    Attributes:
        project: Name of the project, made when it is missing.
        organization: Name of the organization, made when it is missing.
        budget: `AMOUNT/WINDOW`: "1.00/month".
        timezone: IANA zone whose calendar the budget's windows follow.
        rpm: Requests per minute.
        tpm: Tokens per minute.
        concurrency: Requests in flight.
        models: Model ids that it may ask for; all by default.
        scopes: `inference`, `usage`, `admin`.
        expires_at: When it ends.
        max_output: Output tokens per request at most.
        name: For people.
        any_model: Take `models` that the gateway's config does not name (yet).
    """

    project: Required[str]
    organization: str
    budget: str | None
    timezone: str
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    models: Sequence[str] | None
    scopes: Sequence[Literal["inference", "usage", "admin"]]
    expires_at: datetime | None
    max_output: int | None
    name: str
    any_model: bool


class KeyCreated(Answer):
    """A fresh key; its secret is shown this once, and only to who asks for `key`."""

    id: str
    key: str = Field(repr=False)
    project: str = ""
    organization: str = ""


class BudgetInfo(Wire):
    """A budget and where its present window stands; amounts are decimal strings.

    Attributes:
        kind: A window, or `credit` for what was prepaid.
        priority: Of a grant of credit: lower ones burn first.
    """

    kind: str
    limit: str | None = None
    spent: str | None = None
    held: str | None = None
    hard: bool = True
    timezone: str = "UTC"
    starts_at: str | None = None
    ends_at: str | None = None
    priority: int | None = None


class AccountInfo(Wire):
    """An organization, a project or a key with its budgets and limits."""

    id: str
    kind: str = ""
    name: str = ""
    parent: str | None = None
    created_at: str | None = None
    budgets: list[BudgetInfo] = Field(default_factory=list[BudgetInfo])
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    in_flight: int = 0


class CreditInfo(Wire):
    """A grant of prepaid credit; amounts are decimal strings.

    Attributes:
        account: Whose it is; `name` is for people.
        amount: What was granted; what is spent and held of it is not taken off.
        priority: Lower ones burn first.
        expires_at: When what is left of it is gone; None for never.
    """

    account: str
    name: str = ""
    amount: str = "0"
    spent: str = "0"
    held: str = "0"
    priority: int = 0
    expires_at: str | None = None


class KeyInfo(Wire):
    """A key as lists show it: never the key itself."""

    id: str
    name: str = ""
    prefix: str = ""
    project: str = ""
    project_id: str = ""
    organization_id: str = ""
    scopes: list[str] = Field(default_factory=list[str])
    models: list[str] | None = None
    max_output: int | None = None
    created_at: str | None = None
    expires_at: str | None = None
    revoked_at: str | None = None
    account: AccountInfo | None = None


class Done(Answer):
    """The command was carried out; `changed` is False when it was so already."""

    id: str = ""
    changed: bool = True


class PriceInfo(Wire):
    """A price version.

    Attributes:
        id: What records and quotes name it by.
        rates: Decimal strings by rate: tokens per million. Empty where a price was withdrawn.
        source: Who set it: `admin`, `config`, ...
        scope: The key or organization that it is for; empty for everyone.
        effective_at: When it begins or began.
        margin: Percent on the price beneath it, in the rates already; None where it stands alone.
        state: In lists: `in_force`, `coming`, `past`, or `replaced` before it began.
    """

    id: str
    model: str = ""
    rates: dict[str, Any] = Field(default_factory=dict[str, Any])
    source: str = ""
    scope: str = ""
    effective_at: str | None = None
    margin: str | None = None
    state: str | None = None


class PricesSet(Answer):
    """The price versions that are new: the one that was asked for first, then margins that follow it."""

    versions: list[PriceInfo] = Field(default_factory=list[PriceInfo])


class TagsErased(Answer):
    """What was erased.

    Attributes:
        erased: Of how many requests the tags were.
        after: Where there may be more; None when that was all, as the client's own methods see to.
        copies: Files beside the gateway's store, made before migrations, which still have them.
    """

    erased: int = 0
    after: str | None = None
    copies: list[str] = Field(default_factory=list[str])


class ConsumerInfo(Wire):
    """A plugin that takes usage records.

    Attributes:
        position: The place (`seq`) of the last record that it has taken.
        behind: How many it has not taken yet.
        oldest_at: When the oldest of these was finished.
        error: Why it comes no further; empty while it does.
    """

    name: str
    position: int = 0
    behind: int = 0
    oldest_at: str | None = None
    error: str = ""


class ModelState(Answer):
    """What a configured model is doing.

    Attributes:
        state: `ready`, `unloaded`, or what it is doing instead; `reason` says why.
        required: Whether the gateway calls itself ready only once this model was.
        device: What it runs on: `cpu`, `cuda:0`, or `remote` for a provider.
        detail: The engine's own line about it.
    """

    id: str
    task: str | None = None
    state: str = ""
    reason: str = ""
    required: bool | None = None
    aliases: list[str] = Field(default_factory=list[str])
    backends: list[str] = Field(default_factory=list[str])
    device: str = ""
    detail: str = ""


class LogEntry(Wire):
    """What somebody did.

    Attributes:
        actor: Who: `admin`, `config`, ...
        action: What: `key.create`, `budget.set`, ...
        target: The account, key, price or model that it was done to.
        detail: What was asked for.
    """

    id: int
    at: str = ""
    actor: str = ""
    action: str = ""
    target: str = ""
    detail: dict[str, Any] = Field(default_factory=dict[str, Any])


class PageDocument(Answer):
    """A page of any list as it travels."""

    data: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    has_more: bool = False
    after: str | None = None

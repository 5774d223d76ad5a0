"""Usage records and totals, and how they compare with what the client saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict

from pydantic import Field

from headgate._core.money import Cost
from headgate.types.shared import Answer, Wire

UsageGroup = Literal["model", "key", "project", "organization", "backend", "outcome"]
"""What totals can be grouped by; besides, `tag:NAME` groups by the values of a tag."""


class UsageQuery(TypedDict, total=False):
    """What part of the usage to ask for.

    Attributes:
        since: From here on (included).
        until: Up to here (excluded).
        group_by: Totals per this, or per each combination of these, instead of single records.
        bucket: Totals per this long.
        model: Only this model's.
        key: Only this key's, by id.
        project: Only this project's, by id or name; a key sees its own project only.
        organization: Only this organization's, by id or name.
        backend: Only what this backend answered.
        outcome: Only records with this outcome: `ok`, `client_gone`, `budget_stop`, ...
        after: Cursor: the id of the last record that you have.
        limit: Records in a page.
    """

    since: datetime | str
    until: datetime | str
    group_by: UsageGroup | str | Sequence[UsageGroup | str]
    bucket: Literal["1m", "1h", "1d"]
    model: str
    key: str
    project: str
    organization: str
    backend: str
    outcome: str
    after: str
    limit: int


class UsageAttempt(Wire):
    """One try of the gateway at one target."""

    backend: str = ""
    target: str = ""
    outcome: str = ""
    started_at: str | None = None
    ended_at: str | None = None


class UsageRecord(Wire):
    """One request as the ledger has it; members that are not named here are kept.

    Attributes:
        usage_source: Who counted: `upstream`, `tokenizer`, `slot` (after a crash) or `estimated`.
        price: The price version that it was billed with.
        flagged: Whether the counts are a lower bound that somebody should look at.
        retry_of: The request whose spent idempotency key this one ran again for, free of charge.
        erased: Whether it had tags which were erased.
    """

    request_id: str = ""
    model: str | None = None
    task: str | None = None
    organization: str | None = None
    project: str | None = None
    key: str | None = None
    cost: str | None = None
    price: str | None = None
    outcome: str | None = None
    backend: str | None = None
    usage_source: str | None = None
    billed: bool | None = None
    flagged: bool | None = None
    created_at: str | None = None
    first_byte_at: str | None = None
    finished_at: str | None = None
    idempotency_key: str | None = None
    retry_of: str | None = None
    attempts: list[UsageAttempt] = Field(default_factory=list[UsageAttempt])
    usage: dict[str, Any] = Field(default_factory=dict[str, Any])
    tags: dict[str, str] = Field(default_factory=dict[str, str])
    erased: bool = False

    @property
    def amount(self) -> Cost | None:
        """The cost, exact."""
        return Cost.parse(self.cost)


class UsageRow(Wire):
    """Totals of one group or one bucket, or a record in short.

    The fields that were not grouped by are None.
    """

    request_id: str | None = None
    model: str | None = None
    key: str | None = None
    project: str | None = None
    organization: str | None = None
    backend: str | None = None
    outcome: str | None = None
    bucket: str | None = None
    requests: int | None = None
    cost: str | None = None
    usage: dict[str, Any] = Field(default_factory=dict[str, Any])

    def tag(self, name: str) -> str | None:
        """The value of a tag that totals were grouped by; empty for requests without it."""
        value = (self.model_extra or {}).get(f"tag:{name}")
        return None if value is None else str(value)

    @property
    def input_tokens(self) -> int:
        """Tokens that went in, cached ones included."""
        return int(self.usage.get("prompt_tokens") or 0)

    @property
    def output_tokens(self) -> int:
        """Tokens that came out, reasoning included."""
        return int(self.usage.get("completion_tokens") or 0)

    @property
    def amount(self) -> Cost | None:
        """The cost, exact."""
        return Cost.parse(self.cost)


class UsageReport(Answer):
    """A page of records or totals.

    Attributes:
        archived_until: What was finished by then is in the operator's archive, and not here; None for no archive.
    """

    data: list[UsageRow] = Field(default_factory=list[UsageRow])
    has_more: bool = False
    after: str | None = None
    archived_until: str | None = None

    def __iter__(self) -> Iterator[UsageRow]:  # type: ignore[override]
        """The rows of this page."""
        return iter(self.data)


@dataclass(frozen=True, slots=True)
class Difference:
    """A request that the client and the ledger see differently."""

    request_id: str
    model: str | None
    here: Cost | None
    there: Cost | None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The client's journal against the ledger.

    Attributes:
        matched: Requests that both have at the same cost.
        differing: Both have it, at different costs.
        missing_here: Only the ledger has it: an answer that the client never saw.
        missing_there: Only the client has it: should never be.
        here: Sum of what the client saw.
        there: Sum of what the ledger has.
        forgotten: Calls of the client that it no longer remembers; their records are among `missing_here`.
    """

    matched: int
    differing: Sequence[Difference] = ()
    missing_here: Sequence[Difference] = ()
    missing_there: Sequence[Difference] = ()
    here: Cost = field(default_factory=lambda: Cost(0))
    there: Cost = field(default_factory=lambda: Cost(0))
    forgotten: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is no difference at all."""
        return not (self.differing or self.missing_here or self.missing_there)


JournalRows = Mapping[str, tuple[str | None, int | None]]

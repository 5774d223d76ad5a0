"""Accounts and keys as the ledger lists them, as documents and as short texts. May import administration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from headgate_gateway.cli.times import when

if TYPE_CHECKING:
    from headgate_gateway.cli.administration import Administration
    from headgate_gateway.domain.commands import AccountInfo, KeyInfo

PAGE: Final = 500


def read_keys(admin: Administration, project: str | None) -> Iterator[KeyInfo]:
    """Every key, page by page."""
    from headgate_gateway.domain.commands import KeyPage, ListKeys

    after: str | None = ""
    while after is not None:
        page = admin.carry_out(ListKeys(project=project, after=after, limit=PAGE), KeyPage)
        yield from page.keys
        after = page.after


def read_accounts(admin: Administration) -> Iterator[AccountInfo]:
    """Every account, page by page."""
    from headgate_gateway.domain.commands import AccountPage, ListAccounts

    after: str | None = ""
    while after is not None:
        page = admin.carry_out(ListAccounts(after=after, limit=PAGE), AccountPage)
        yield from page.accounts
        after = page.after


def key_document(key: KeyInfo) -> dict[str, Any]:
    """A key for `--json`."""
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "project": key.project,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "max_output": key.max_output,
        "created_at": when(key.created_at),
        "expires_at": when(key.expires_at),
        "revoked_at": when(key.revoked_at),
        "budgets": budget_documents(key.account),
        "limits": dict(limits_of(key.account)),
    }


def account_document(account: AccountInfo) -> dict[str, Any]:
    """An account for `--json`."""
    return {
        "id": account.id,
        "kind": account.kind,
        "name": account.name,
        "parent": account.parent,
        "budgets": budget_documents(account),
        "limits": dict(limits_of(account)),
        "in_flight": account.in_flight,
    }


def budget_documents(account: AccountInfo) -> list[dict[str, Any]]:
    """An account's budgets for `--json`; amounts are decimal strings."""
    from headgate_gateway.domain.money import format_amount

    return [
        {
            "window": budget.kind,
            "hard": budget.hard,
            "limit": format_amount(budget.limit),
            "spent": format_amount(budget.spent),
            "held": format_amount(budget.held),
            "timezone": budget.timezone,
            "resets_at": when(budget.ends_at),
        }
        for budget in account.budgets
    ]


def credit_documents(account: AccountInfo) -> list[dict[str, Any]]:
    """An account's grants of credit for `--json`, in the order in which they burn."""
    from headgate_gateway.domain.money import format_amount

    return [
        {
            "amount": format_amount(grant.limit),
            "spent": format_amount(grant.spent),
            "held": format_amount(grant.held),
            "priority": grant.priority,
            "expires_at": when(grant.ends_at),
        }
        for grant in account.budgets
        if grant.priority is not None
    ]


def limits_of(account: AccountInfo) -> list[tuple[str, int]]:
    """The limits that an account has, by kind."""
    limits = {
        "requests": account.requests_per_minute,
        "tokens": account.tokens_per_minute,
        "concurrency": account.concurrency,
    }
    return [(kind, value) for kind, value in limits.items() if value is not None]


def limits_told(account: AccountInfo) -> str:
    """Its limits in a line."""
    return ", ".join(f"{value} {kind}" for kind, value in limits_of(account))


def budgets_told(account: AccountInfo) -> str:
    """Its budgets in a line."""
    from headgate_gateway.domain.money import format_amount

    return ", ".join(
        f"{format_amount(b.spent)} of {format_amount(b.limit)} {b.kind}" + ("" if b.hard else " (soft)")
        for b in account.budgets
    )

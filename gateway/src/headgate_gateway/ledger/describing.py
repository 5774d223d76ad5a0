"""Accounts and keys as lists show them. May import domain, book and credit."""

from __future__ import annotations

from headgate_gateway.domain import commands as c
from headgate_gateway.domain.budgets import FOREVER, window_of
from headgate_gateway.ledger import credit
from headgate_gateway.ledger.book import CREDIT, Account, Budget, Key


def account_info(account: Account, now_us: int) -> c.AccountInfo:
    """An account with its budgets, the credit that has not expired, and its limits."""
    budgets = [_budget_info(budget, now_us) for budget in account.budgets.values() if not credit.is_grant(budget)]
    grants = [_budget_info(grant, now_us) for grant in credit.live(account, now_us)]
    return c.AccountInfo(
        id=account.id, kind=account.kind, name=account.name,
        parent=account.parent.id if account.parent else None, created_at=account.created_us,
        budgets=(*budgets, *grants), requests_per_minute=account.requests.limit if account.requests else None,
        tokens_per_minute=account.tokens.limit if account.tokens else None, concurrency=account.concurrency,
        in_flight=account.in_flight,
    )  # fmt: skip


def _budget_info(budget: Budget, now_us: int) -> c.BudgetInfo:
    """A window that nobody was admitted in yet is shown as it would be opened now."""
    window = budget.window if budget.window is not None and budget.window.end_us > now_us else None
    grant = credit.is_grant(budget)
    start, end = (
        (window.start_us, window.end_us) if window else window_of(budget.calendar, budget.timezone, now_us)
    )
    return c.BudgetInfo(
        kind=CREDIT if grant else budget.kind, limit=budget.limit, hard=budget.hard, timezone=budget.timezone,
        spent=window.spent if window else 0, held=window.held if window else 0,
        starts_at=start, ends_at=None if end == FOREVER else end,
        priority=credit.priority_of(budget.kind) if grant else None,
    )  # fmt: skip


def key_info(key: Key, now_us: int) -> c.KeyInfo:
    """A key, never its secret."""
    account, project, organization = key.path
    return c.KeyInfo(
        id=key.id, name=key.name, prefix=key.prefix, project=project.name, project_id=project.id,
        organization_id=organization.id, scopes=key.scopes, models=key.models, max_output=key.max_output,
        created_at=key.created_us, expires_at=None if key.expires_us == FOREVER else key.expires_us,
        revoked_at=key.revoked_us, account=account_info(account, now_us),
    )  # fmt: skip

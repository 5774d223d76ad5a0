"""What the ledger gave, as JSON shows it: money as decimal strings, times as RFC 3339, lists in pages.

May import domain and problems.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec
from headgate_plugin_api import JsonValue

from headgate_gateway.domain.commands import AccountInfo, PriceInfo
from headgate_gateway.domain.margins import format_margin
from headgate_gateway.domain.money import format_amount
from headgate_gateway.domain.pricing import PriceVersion, quoted_terms
from headgate_gateway.http.problems import timestamp

_MONEY: Final = frozenset({"limit", "spent", "held"})
_TIMES: Final = frozenset({"starts_at", "ends_at", "created_at", "expires_at", "revoked_at", "oldest_at"})


def page_of(data: list[Any], after: str | None) -> dict[str, Any]:
    """A page of a list; `after` is where the next one starts, None on the last."""
    return {"object": "list", "data": data, "has_more": after is not None, "after": after}


def grants_of(account: AccountInfo) -> list[dict[str, Any]]:
    """An account's grants of credit, in the order in which they burn."""
    return [
        {
            "account": account.id,
            "name": account.name,
            "amount": format_amount(grant.limit),
            "spent": format_amount(grant.spent),
            "held": format_amount(grant.held),
            "priority": grant.priority,
            "expires_at": None if grant.ends_at is None else timestamp(grant.ends_at),
        }
        for grant in account.budgets
        if grant.priority is not None
    ]


Given: TypeAlias = "msgspec.Struct | dict[str, Given] | tuple[Given, ...] | frozenset[str] | JsonValue"


def shown(value: Given) -> Any:
    """What the ledger gave, for JSON: money as decimal strings, times as RFC 3339, sets as sorted lists."""
    if isinstance(value, PriceInfo):
        return {**shown(value.version), "state": value.state}
    if isinstance(value, PriceVersion):
        return {
            "id": value.id,
            "model": value.model,
            "rates": quoted_terms(value.terms),
            "source": value.source,
            "scope": value.scope,
            "effective_at": timestamp(value.effective_us, "microseconds"),
            "margin": None if value.margin is None else format_margin(value.margin),
        }
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        return {name: _shown_field(name, item) for name, item in fields.items()}
    if isinstance(value, tuple | list):
        return [shown(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {name: shown(item) for name, item in value.items()}
    return value


def _shown_field(name: str, value: Given) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if name in _MONEY:
            return format_amount(value)
        if name in _TIMES:
            return timestamp(value)
    return shown(value)

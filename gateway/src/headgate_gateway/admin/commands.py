"""Administrative commands and what they answer, for those who call the use cases. May import domain.

The types live in `domain.commands`, because the ledger, which carries them out, may not look up to this room.
"""

from headgate_gateway.domain.commands import (
    AccountInfo,
    AccountPage,
    BudgetInfo,
    Command,
    CreateKey,
    Done,
    GrantCredit,
    KeyCreated,
    KeyInfo,
    KeyPage,
    ListAccounts,
    ListKeys,
    PricesSet,
    Rejected,
    Result,
    RevokeKey,
    SetBudget,
    SetLimit,
    SetPrice,
    SyncPrices,
)

__all__ = [
    "AccountInfo",
    "AccountPage",
    "BudgetInfo",
    "Command",
    "CreateKey",
    "Done",
    "GrantCredit",
    "KeyCreated",
    "KeyInfo",
    "KeyPage",
    "ListAccounts",
    "ListKeys",
    "PricesSet",
    "Rejected",
    "Result",
    "RevokeKey",
    "SetBudget",
    "SetLimit",
    "SetPrice",
    "SyncPrices",
]

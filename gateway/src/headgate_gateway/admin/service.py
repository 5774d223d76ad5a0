"""Administrative use cases: the same from a worker, through its ledger client, and from the command line.

May import domain and the ledger's client. Commands that the ledger rejects are raised as `CommandRejected`, so
that callers only handle answers.
"""

from __future__ import annotations

from typing import TypeVar

from headgate_gateway.admin.commands import (
    AccountFound,
    AccountInfo,
    AccountPage,
    CancelPrice,
    Command,
    CreateKey,
    Done,
    GetAccount,
    GrantCredit,
    KeyCreated,
    KeyPage,
    ListAccounts,
    ListKeys,
    ListPrices,
    PriceList,
    PricesSet,
    Rejected,
    Result,
    RevokeKey,
    RotateKey,
    SetBudget,
    SetLimit,
    SetPrice,
    SyncPrices,
)
from headgate_gateway.ledger.client import LedgerClient

R = TypeVar("R", bound=Result)


class CommandRejected(Exception):
    """The ledger did not carry a command out.

    Attributes:
        rejected: Why: a code, a message that names what was expected, and the field at fault.
    """

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.message)
        self.rejected = rejected


class AdminService:
    """What operators do.

    Args:
        ledger: Through which.
    """

    def __init__(self, ledger: LedgerClient) -> None:
        self._ledger = ledger

    async def _do(self, command: Command, answer: type[R]) -> R:
        result = await self._ledger.command(command)
        if isinstance(result, Rejected):
            raise CommandRejected(result)
        assert isinstance(result, answer), f"{type(command).__name__} was answered by {type(result).__name__}"
        return result

    async def create_key(self, command: CreateKey) -> KeyCreated:
        """Make a key; its secret is in the answer and nowhere else."""
        return await self._do(command, KeyCreated)

    async def revoke_key(self, key_id: str) -> bool:
        """End a key at once, on every worker; False when it had ended before."""
        return (await self._do(RevokeKey(id=key_id), Done)).changed

    async def rotate_key(self, command: RotateKey) -> KeyCreated:
        """Make a successor of a key; the old one ends, after an overlap if one is asked for."""
        return await self._do(command, KeyCreated)

    async def list_keys(self, command: ListKeys) -> KeyPage:
        """A page of keys."""
        return await self._do(command, KeyPage)

    async def list_accounts(self, command: ListAccounts) -> AccountPage:
        """A page of accounts with their budgets and limits."""
        return await self._do(command, AccountPage)

    async def get_account(self, account: str) -> AccountInfo:
        """One account, by id, or by the name of a project or organization."""
        return (await self._do(GetAccount(id=account), AccountFound)).account

    async def set_budget(self, command: SetBudget) -> str:
        """Set, change or lift a budget; returns the account's id."""
        return (await self._do(command, Done)).id

    async def set_limit(self, command: SetLimit) -> str:
        """Set or lift a limit; returns the account's id."""
        return (await self._do(command, Done)).id

    async def grant_credit(self, command: GrantCredit) -> str:
        """Add prepaid credit; returns the account's id."""
        return (await self._do(command, Done)).id

    async def set_price(self, command: SetPrice) -> PricesSet:
        """Make a price version."""
        return await self._do(command, PricesSet)

    async def list_prices(self, command: ListPrices) -> PriceList:
        """A page of price versions."""
        return await self._do(command, PriceList)

    async def cancel_price(self, price_id: str) -> PricesSet:
        """Let a planned price not begin."""
        return await self._do(CancelPrice(id=price_id), PricesSet)

    async def sync_prices(self, command: SyncPrices) -> PricesSet:
        """Take the config's prices; the answer has those that are new."""
        return await self._do(command, PricesSet)

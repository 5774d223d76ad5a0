"""Administrative use cases, through a ledger that is started for the moment."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from headgate_gateway.admin.commands import (
    CreateKey,
    GrantCredit,
    ListAccounts,
    ListKeys,
    ListPrices,
    SetBudget,
    SetLimit,
    SetPrice,
    SyncPrices,
)
from headgate_gateway.admin.service import AdminService, CommandRejected
from headgate_gateway.domain.keys import well_formed
from headgate_gateway.ledger.audit import audit
from headgate_gateway.ledger.embedded import momentary_ledger
from headgate_gateway.settings import Model, Price, Server, Settings


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[AdminService]:
    price = Price.model_validate({"input": "0.15"})
    settings = Settings(
        server=Server(data_dir=tmp_path), models=(Model(id="echo", task="chat", backend="echo", price=price),)
    )
    async with momentary_ledger(settings, settings.layout) as client:
        yield AdminService(client)
    report = audit(settings.layout)
    assert report.ok, report.first_difference


async def test_keys_come_and_go(admin: AdminService) -> None:
    made = await admin.create_key(
        CreateKey(project="shop", budget="1.00/month", rpm=60, models=frozenset({"echo"}))
    )
    assert well_formed(made.key)
    (listed,) = (await admin.list_keys(ListKeys())).keys
    assert (listed.id, listed.project, listed.account.requests_per_minute) == (made.id, "shop", 60)
    assert made.key.startswith(listed.prefix)
    assert [budget.limit for budget in listed.account.budgets] == [10**9]
    assert await admin.revoke_key(made.id) is True
    assert await admin.revoke_key(made.id) is False
    with pytest.raises(CommandRejected, match="no key"):
        await admin.revoke_key("key_none")


async def test_projects_are_made_once(admin: AdminService) -> None:
    one = await admin.create_key(CreateKey(project="shop"))
    two = await admin.create_key(CreateKey(project="shop"))
    other = await admin.create_key(CreateKey(project="shop", organization="other"))
    assert one.project == two.project != other.project
    assert len((await admin.list_keys(ListKeys(project="shop"))).keys) == 3


async def test_pages(admin: AdminService) -> None:
    made = {(await admin.create_key(CreateKey(project="p"))).id for _ in range(5)}
    seen: set[str] = set()
    after = ""
    while True:
        page = await admin.list_keys(ListKeys(after=after, limit=2))
        seen |= {key.id for key in page.keys}
        if page.after is None:
            break
        after = page.after
    assert seen == made


async def test_budgets_limits_credit(admin: AdminService) -> None:
    await admin.create_key(CreateKey(project="shop"))
    await admin.set_budget(SetBudget(account="shop", amount="5", window="week", timezone="Europe/Berlin"))
    await admin.set_limit(SetLimit(account="shop", kind="tokens", amount=1000))
    await admin.grant_credit(GrantCredit(account="default", amount="2.5"))
    accounts = {account.name: account for account in (await admin.list_accounts(ListAccounts())).accounts}
    assert (accounts["shop"].budgets[0].timezone, accounts["shop"].tokens_per_minute) == ("Europe/Berlin", 1000)
    assert accounts["default"].budgets[0].limit == 2_500_000_000
    await admin.set_budget(SetBudget(account="shop", amount=None, window="week"))
    accounts = {account.name: account for account in (await admin.list_accounts(ListAccounts())).accounts}
    assert accounts["shop"].budgets == ()


async def test_the_configs_prices_are_there_and_change_only_when_they_change(admin: AdminService) -> None:
    assert (await admin.sync_prices(SyncPrices(models={"echo": {"input": "0.150"}}))).versions == ()
    (version,) = (await admin.sync_prices(SyncPrices(models={"echo": {"input": "0.2"}}))).versions
    assert (version.source, version.rates["input"].nano) == ("config", 200_000_000)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (CreateKey(project=""), "project"),
        (CreateKey(project="a\nb"), "project"),
        (CreateKey(project="p", budget="1/year"), "budget"),
        (CreateKey(project="p", budget="1/day", timezone="Mars/Base"), "timezone"),
        (CreateKey(project="p", scopes=frozenset({"root"})), "scopes"),
        (CreateKey(project="p", rpm=-1), "rpm"),
    ],
)
async def test_bad_keys_name_their_field(admin: AdminService, command: CreateKey, field: str) -> None:
    with pytest.raises(CommandRejected) as raised:
        await admin.create_key(command)
    assert raised.value.rejected.field == field
    assert (await admin.list_accounts(ListAccounts())).accounts == ()


async def test_bad_amounts_name_their_field(admin: AdminService) -> None:
    await admin.create_key(CreateKey(project="shop"))
    with pytest.raises(CommandRejected, match="9 decimals"):
        await admin.set_budget(SetBudget(account="shop", amount="0.0000000001", window="day"))
    with pytest.raises(CommandRejected, match="'inptu' is not a rate"):
        await admin.set_price(SetPrice(model="m", rates={"inptu": "1"}))
    with pytest.raises(CommandRejected, match="neither spent nor held"):
        await admin.grant_credit(GrantCredit(account="shop", amount="-1"))
    with pytest.raises(CommandRejected, match="no account"):
        await admin.set_limit(SetLimit(account="nowhere", kind="requests", amount=1))


async def test_one_account_by_id_or_name(admin: AdminService) -> None:
    made = await admin.create_key(CreateKey(project="shop", rpm=60))
    assert (await admin.get_account(made.id)).requests_per_minute == 60
    assert (await admin.get_account("shop")).id == made.project
    with pytest.raises(CommandRejected, match="no account"):
        await admin.get_account("nobody")


async def test_lists_of_one_kind_fill_their_pages(admin: AdminService) -> None:
    for project in ("a", "b", "c"):
        await admin.create_key(CreateKey(project=project))
    page = await admin.list_accounts(ListAccounts(kind="project", limit=2))
    assert [account.kind for account in page.accounts] == ["project", "project"]
    rest = await admin.list_accounts(ListAccounts(kind="project", limit=2, after=page.after or ""))
    assert ([account.kind for account in rest.accounts], rest.after) == (["project"], None)


async def test_prices_in_force_are_listed(admin: AdminService) -> None:
    key = await admin.create_key(CreateKey(project="shop"))
    await admin.set_price(SetPrice(model="echo", rates={"input": "1"}))
    await admin.set_price(SetPrice(model="echo", rates={"input": "2"}))
    await admin.set_price(SetPrice(model="echo", rates={"input": "3"}, scope=key.id))

    async def listed() -> set[tuple[str, str]]:
        page = await admin.list_prices(ListPrices())
        return {(one.version.source, one.version.scope) for one in page.prices}

    assert await listed() == {("admin", ""), ("config", ""), ("key", key.id)}
    await admin.set_price(SetPrice(model="echo", rates=None))
    assert await listed() == {("config", ""), ("key", key.id)}


async def test_a_key_that_has_expired_is_not_made(admin: AdminService) -> None:
    with pytest.raises(CommandRejected, match="expires_at must be in the future"):
        await admin.create_key(CreateKey(project="shop", expires_at=1))
    assert (await admin.list_keys(ListKeys())).keys == ()

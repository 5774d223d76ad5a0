"""`headgate accounts`, `budgets`, `limits`, `prices`, `credits`: what the ledger is told by people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast, get_args

import typer

from headgate_gateway.cli.applying import apply_prices
from headgate_gateway.cli.options import BAD_INPUT, Config, Json, Url, fail
from headgate_gateway.cli.output import print_json, print_table

if TYPE_CHECKING:
    from headgate_gateway.domain.commands import Command

Window = Literal["total", "hour", "day", "week", "month"]
LimitKind = Literal["requests", "tokens", "concurrency"]
WINDOWS: Final[tuple[str, ...]] = get_args(Window)
LIMIT_KINDS: Final[tuple[str, ...]] = get_args(LimitKind)

Account = Annotated[
    str, typer.Argument(help="An id (key_..., prj_..., org_...) or a project's or organization's name.")
]
Kind = Annotated[str, typer.Argument(help="requests or tokens (a minute), or concurrency.")]


def register(application: typer.Typer) -> None:
    """Add these commands."""
    groups: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
        "accounts": ("Organizations, projects and keys.", {"list": list_accounts}),
        "budgets": (
            "How much an account may spend.",
            {"set": set_budget, "remove": remove_budget, "list": list_budgets},
        ),
        "limits": (
            "How fast an account may ask.",
            {"set": set_limit, "remove": remove_limit, "list": list_limits},
        ),
        "prices": ("What models cost.", {"set": set_price, "apply": apply_prices, "list": list_prices}),
        "credits": ("Prepaid amounts.", {"grant": grant_credit}),
    }
    for name, (help_text, commands) in groups.items():
        group = typer.Typer(help=help_text, no_args_is_help=True)
        for command, function in commands.items():
            group.command(command)(function)
        application.add_typer(group, name=name)


def list_accounts(config: Config = None, url: Url = None, json: Json = False) -> None:
    """List organizations, projects and keys with what limits them."""
    from headgate_gateway.cli.account_views import account_document, budgets_told, limits_told, read_accounts
    from headgate_gateway.cli.administration import administration

    with administration(config, url) as admin:
        found = list(read_accounts(admin))
    if json:
        print_json({"accounts": [account_document(account) for account in found]})
        return
    rows = [(a.id, a.kind, a.name, a.parent, budgets_told(a), limits_told(a), a.in_flight) for a in found]
    columns = ("id", "kind", "name", "in", "budget", "limits", "in flight")
    print_table(columns, rows, empty="no accounts yet; `headgate keys create --project NAME` makes the first")


def set_budget(
    account: Account,
    amount: Annotated[
        str, typer.Argument(metavar="AMOUNT/WINDOW", help="1.00/month; total, hour, day, week, month.")
    ],
    soft: Annotated[bool, typer.Option("--soft", help="Count and show, refuse nothing.")] = False,
    timezone: Annotated[str, typer.Option(help="IANA zone whose calendar the windows follow.")] = "UTC",
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Set or change a budget."""
    from headgate_gateway.domain.commands import SetBudget

    value, _, window = amount.partition("/")
    kind = _window(window)
    command = SetBudget(account=account, amount=value, window=kind, hard=not soft, timezone=timezone)
    _change(command, account, config, url, json=json)


def remove_budget(
    account: Account,
    window: Annotated[str, typer.Argument(help="total, hour, day, week or month.")],
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Lift a budget."""
    from headgate_gateway.domain.commands import SetBudget

    command = SetBudget(account=account, amount=None, window=_window(window))
    _change(command, account, config, url, json=json)


def _window(text: str) -> Window:
    if text not in WINDOWS:
        fail(f'expected a window ({", ".join(WINDOWS)}) after the slash, not "{text}"', BAD_INPUT)
    return cast(Window, text)


def list_budgets(config: Config = None, url: Url = None, json: Json = False) -> None:
    """List every budget and what is left of it."""
    from headgate_gateway.cli.account_views import budget_documents, read_accounts
    from headgate_gateway.cli.administration import administration

    with administration(config, url) as admin:
        accounts = list(read_accounts(admin))
    budgets = [
        {"account": a.id, "name": a.name, **document} for a in accounts for document in budget_documents(a)
    ]
    if json:
        print_json({"budgets": budgets})
        return
    fields = ("account", "name", "window", "hard", "limit", "spent", "held", "resets_at")
    print_table(fields, [[budget[field] for field in fields] for budget in budgets], empty="no budgets")


def set_limit(
    account: Account,
    kind: Kind,
    amount: Annotated[int, typer.Argument(min=1)],
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Set or change a limit."""
    from headgate_gateway.domain.commands import SetLimit

    command = SetLimit(account=account, kind=_limit_kind(kind), amount=amount)
    _change(command, account, config, url, json=json)


def remove_limit(
    account: Account, kind: Kind, config: Config = None, url: Url = None, json: Json = False
) -> None:
    """Lift a limit."""
    from headgate_gateway.domain.commands import SetLimit

    _change(SetLimit(account=account, kind=_limit_kind(kind), amount=None), account, config, url, json=json)


def _limit_kind(text: str) -> LimitKind:
    if text not in LIMIT_KINDS:
        fail(f'expected {", ".join(LIMIT_KINDS)}, not "{text}"', BAD_INPUT)
    return cast(LimitKind, text)


def list_limits(config: Config = None, url: Url = None, json: Json = False) -> None:
    """List every limit."""
    from headgate_gateway.cli.account_views import limits_of, read_accounts
    from headgate_gateway.cli.administration import administration

    with administration(config, url) as admin:
        limits = [(a.id, a.name, kind, value) for a in read_accounts(admin) for kind, value in limits_of(a)]
    fields = ("account", "name", "kind", "limit")
    if json:
        print_json({"limits": [dict(zip(fields, limit, strict=True)) for limit in limits]})
    else:
        print_table(fields, limits, empty="no limits")


def grant_credit(
    account: Account,
    amount: Annotated[str, typer.Argument(help="Decimal; a negative one (after --) takes credit back.")],
    note: Annotated[str, typer.Option(help="For people; kept in the audit log.")] = "",
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Grant prepaid credit."""
    from headgate_gateway.domain.commands import GrantCredit

    _change(GrantCredit(account=account, amount=amount, note=note), account, config, url, json=json)


def _change(command: Command, account: str, config: Path | None, url: str | None, *, json: bool) -> None:
    """Carry out a change and say whether it was one."""
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import Done

    with administration(config, url) as admin:
        done = admin.carry_out(command, Done)
    if json:
        print_json({"account": account, "id": done.id, "changed": done.changed})
    else:
        typer.echo("done" if done.changed else "it was so already")


def set_price(
    model: Annotated[str, typer.Argument(help="A configured model's id.")],
    rates: Annotated[
        list[str], typer.Argument(metavar="RATE=AMOUNT...", help="input=0.15 output=0.60, per million.")
    ],
    scope: Annotated[str, typer.Option("--for", help="A key or organization: an override for it alone.")] = "",
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Set a model's price; requests admitted from now on pay it."""
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import PricesSet, SetPrice

    stated = {}
    for rate in rates:
        name, _, amount = rate.partition("=")
        if not name or not amount:
            fail(f'expected RATE=AMOUNT such as input=0.15, not "{rate}"', BAD_INPUT)
        stated[name] = amount
    with administration(config, url) as admin:
        done = admin.carry_out(SetPrice(model=model, rates=stated, scope=scope), PricesSet)
    if json:
        print_json({"versions": [version.id for version in done.versions]})
    else:
        typer.echo(", ".join(version.id for version in done.versions) or "it was so already")


def list_prices(config: Config = None, url: Url = None, json: Json = False) -> None:
    """List the prices in force. An override stands over an admin's price, and that over the config's."""
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import ListPrices, PriceList
    from headgate_gateway.domain.pricing import quoted_rates

    with administration(config, url) as admin:
        versions = admin.carry_out(ListPrices(), PriceList).prices
    prices = [(v.model, quoted_rates(v.rates), v.source, v.scope, v.id) for v in versions]
    fields = ("model", "rates", "source", "scope", "id")
    if json:
        print_json({"prices": [dict(zip(fields, price, strict=True)) for price in prices]})
        return
    rows = [
        (model, ", ".join(f"{rate} {amount}" for rate, amount in rates.items()), *others)
        for model, rates, *others in prices
    ]
    print_table(("model", "price (tokens: per million)", *fields[2:]), rows, empty="no model has a price")

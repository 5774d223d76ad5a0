"""`headgate accounts`, `budgets`, `limits`, `credits`: what the ledger is told by people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast, get_args

import typer

from headgate_gateway.cli.options import BAD_INPUT, Config, Json, Listing, Url, fail
from headgate_gateway.cli.output import print_json, print_table

if TYPE_CHECKING:
    from headgate_gateway.domain.commands import Command

Window = Literal["total", "hour", "day", "week", "month"]
LimitKind = Literal["requests", "tokens", "concurrency"]
AccountKind = Literal["project", "organization"]
WINDOWS: Final[tuple[str, ...]] = get_args(Window)
LIMIT_KINDS: Final[tuple[str, ...]] = get_args(LimitKind)

Account = Annotated[
    str, typer.Argument(help="An id (key_..., prj_..., org_...) or a project's or organization's name.")
]
Kind = Annotated[str, typer.Argument(help="requests or tokens (a minute), or concurrency.")]


def register(application: typer.Typer) -> None:
    """Add these commands."""
    groups: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
        "accounts": ("Organizations, projects and keys.", {"list": list_accounts, "create": create_account}),
        "budgets": (
            "How much an account may spend.",
            {"set": set_budget, "remove": remove_budget, "list": list_budgets},
        ),
        "limits": (
            "How fast an account may ask.",
            {"set": set_limit, "remove": remove_limit, "list": list_limits},
        ),
        "credits": ("Prepaid amounts.", {"grant": grant_credit, "list": list_credits}),
    }
    for name, (help_text, commands) in groups.items():
        group = typer.Typer(help=help_text, cls=Listing)
        for command, function in commands.items():
            group.command(command)(function)
        application.add_typer(group, name=name)


def create_account(
    name: Annotated[str, typer.Argument()],
    kind: Annotated[AccountKind, typer.Option(help="What it is.")] = "project",
    organization: Annotated[str, typer.Option(help="The project's; made when it is missing.")] = "default",
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Make a project or an organization, if there is none of that name. Keys make theirs by themselves."""
    from headgate_gateway.cli.account_views import account_document
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import AccountFound, CreateAccount

    with administration(config, url) as admin:
        command = CreateAccount(name=name, kind=kind, organization=organization)
        account = admin.carry_out(command, AccountFound).account
    if json:
        print_json(account_document(account))
    else:
        typer.echo(account.id)


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
    priority: Annotated[int, typer.Option(min=0, max=9999, help="Lower ones burn first.")] = 100,
    expires: Annotated[str | None, typer.Option(help="ISO 8601 date or time; what is left then is gone.")] = None,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Grant prepaid credit, or take some back that is neither spent nor held."""
    from headgate_gateway.cli.times import moment
    from headgate_gateway.domain.commands import GrantCredit

    ends = moment(expires, "--expires")
    command = GrantCredit(account=account, amount=amount, note=note, priority=priority, expires_at=ends)
    _change(command, account, config, url, json=json)


def list_credits(config: Config = None, url: Url = None, json: Json = False) -> None:
    """List every grant that has not expired, in the order in which an account's burn."""
    from headgate_gateway.cli.account_views import credit_documents, read_accounts
    from headgate_gateway.cli.administration import administration

    with administration(config, url) as admin:
        accounts = list(read_accounts(admin))
    grants = [{"account": a.id, "name": a.name, **document} for a in accounts for document in credit_documents(a)]
    if json:
        print_json({"credits": grants})
        return
    fields = ("account", "name", "amount", "spent", "held", "priority", "expires_at")
    print_table(fields, [[grant[field] for field in fields] for grant in grants], empty="no credit was granted")


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

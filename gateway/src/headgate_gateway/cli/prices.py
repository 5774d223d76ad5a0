"""`headgate prices`: what models cost, did and will."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headgate_gateway.cli.options import BAD_INPUT, AnyModel, Config, Json, Listing, Url, fail, load_settings
from headgate_gateway.cli.output import print_json, print_table
from headgate_gateway.cli.times import exactly, moment

if TYPE_CHECKING:
    from headgate_gateway.domain.commands import CancelPrice, PriceInfo, SetPrice, SyncPrices

_STATES: Final = {"in_force": "in force", "coming": "coming", "past": "past", "replaced": "replaced"}

Model = Annotated[str, typer.Argument(help="A configured model's id.")]
Scope = Annotated[str, typer.Option("--for", help="A key or organization: an override for it alone.")]
From = Annotated[
    str | None,
    typer.Option("--from", help="When it begins: ISO 8601, UTC unless it says otherwise; default now."),
]


def register(application: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="What models cost.", cls=Listing)
    group.command("set")(set_price)
    group.command("withdraw")(withdraw)
    group.command("cancel")(cancel)
    group.command("apply")(apply)
    group.command("list")(list_prices)
    application.add_typer(group, name="prices")


def set_price(
    model: Model,
    rates: Annotated[
        list[str],
        typer.Argument(metavar="RATE=AMOUNT...", help="input=0.15 output=0.60, per million; or margin=20%."),
    ],
    context: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N:RATE=AMOUNT,...", help="All of a request with more input tokens than N costs this."
        ),
    ] = None,
    graduated: Annotated[
        list[str] | None, typer.Option(metavar="N:RATE=AMOUNT,...", help="Units of a rate beyond N cost this.")
    ] = None,
    scope: Scope = "",
    begins: From = None,
    any_model: AnyModel = False,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Set a model's price, for now or for later; who was admitted before pays what held then."""
    from headgate_gateway.domain.commands import SetPrice

    stated: dict[str, Any] = _rates(rates)
    for kind, tiers in (("context", context), ("graduated", graduated)):
        if tiers:
            stated[kind] = tuple(_tier(kind, tier) for tier in tiers)
    effective = moment(begins, "--from")
    command = SetPrice(
        model=model, rates=stated, scope=scope, effective_from=effective, any_model=any_model
    )  # fmt: skip
    _change(command, config, url, json=json)


def withdraw(
    model: Model,
    scope: Scope = "",
    begins: From = None,
    any_model: AnyModel = False,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Let a price end: what stands beneath it is in force then, of an override everyone's, else the config's."""
    from headgate_gateway.domain.commands import SetPrice

    effective = moment(begins, "--from")
    command = SetPrice(model=model, rates=None, scope=scope, effective_from=effective, any_model=any_model)
    _change(command, config, url, json=json)


def cancel(
    price_id: Annotated[str, typer.Argument(metavar="ID", help="prc_..., of a price that has not begun.")],
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Let a planned price not begin."""
    from headgate_gateway.domain.commands import CancelPrice

    _change(CancelPrice(id=price_id), config, url, json=json)


def apply(config: Config = None, json: Json = False) -> None:
    """Make the config's prices those of the store; on PostgreSQL a node whose config differs does not start."""
    from headgate_gateway.plugins import PluginError
    from headgate_gateway.price_list import configured_prices

    try:
        command = configured_prices(load_settings(config))
    except PluginError as error:
        fail(str(error), BAD_INPUT)
    _change(command, config, None, json=json)


def list_prices(
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Also those that are over.")] = False,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """List what is in force and what is coming. An override stands over a price set for everyone, and that over
    the config's and a plugin's.
    """
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import ListPrices, PriceList

    found: list[PriceInfo] = []
    with administration(config, url) as admin:
        after: str | None = ""
        while after is not None:
            asked = ListPrices(model=model, history=history, after=after, limit=1000)
            page = admin.carry_out(asked, PriceList)
            found += page.prices
            after = page.after
    found.sort(
        key=lambda one: (one.version.model, one.version.scope, one.version.source, one.version.effective_us)
    )
    if json:
        print_json({"prices": [_document(one) for one in found]})
        return
    rows = [
        (v.model, _told(one), v.scope or "everyone", v.source, _STATES[one.state], exactly(v.effective_us), v.id)
        for one in found
        for v in (one.version,)
    ]
    columns = ("model", "price (tokens: per million)", "for", "source", "state", "from", "id")
    print_table(columns, rows, empty="no model has a price")


def _change(
    command: SetPrice | CancelPrice | SyncPrices, config: Path | None, url: str | None, *, json: bool
) -> None:
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import PricesSet

    with administration(config, url) as admin:
        made = admin.carry_out(command, PricesSet).versions
    if json:
        print_json({"versions": [version.id for version in made]})
    elif not made:
        typer.echo("it was so already")
    else:
        for version in made:
            typer.echo(f"{version.id} of {version.model} for {version.scope or 'everyone'} from "
                       f"{exactly(version.effective_us)}")  # fmt: skip


def _rates(stated: list[str]) -> dict[str, str]:
    rates: dict[str, str] = {}
    for rate in stated:
        name, _, amount = rate.partition("=")
        if not name or not amount:
            fail(f'expected RATE=AMOUNT such as input=0.15, not "{rate}"', BAD_INPUT)
        rates[name] = amount
    return rates


def _tier(kind: str, stated: str) -> dict[str, str | int]:
    above, _, rates = stated.partition(":")
    if not (above.isascii() and above.isdigit()) or not rates:
        fail(f'--{kind}: expected N:RATE=AMOUNT such as 200000:input=2.50,output=15, not "{stated}"', BAD_INPUT)
    return {"above": int(above), **_rates(rates.split(","))}


def _document(one: PriceInfo) -> dict[str, Any]:
    from headgate_gateway.domain.margins import format_margin
    from headgate_gateway.domain.pricing import quoted_terms

    version = one.version
    return {
        "id": version.id,
        "model": version.model,
        "rates": quoted_terms(version.terms),
        "margin": None if version.margin is None else format_margin(version.margin),
        "source": version.source,
        "scope": version.scope,
        "state": one.state,
        "effective_at": exactly(version.effective_us),
    }


def _told(one: PriceInfo) -> str:
    """A price in a few words: rates, tiers, minimum, margin."""
    document = _document(one)
    quoted = document["rates"]
    if not quoted:
        return "withdrawn"
    tiers = [
        f"above {tier['above']} {beyond} {_amounts(tier)}"
        for kind, beyond in (("context", "input tokens:"), ("graduated", "of a kind:"))
        for tier in quoted.get(kind, ())
    ]
    least = [f"at least {quoted['minimum']}"] if "minimum" in quoted else []
    margin = [f"with a margin of {document['margin']} %"] if document["margin"] is not None else []
    return "; ".join([_amounts(quoted), *tiers, *least, *margin])


def _amounts(quoted: dict[str, Any]) -> str:
    rates = {name: amount for name, amount in quoted.items() if name != "minimum" and isinstance(amount, str)}
    return ", ".join(f"{name} {amount}" for name, amount in rates.items())

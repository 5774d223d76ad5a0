"""`headgate keys`: who may call, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headgate_gateway.cli.options import AnyModel, Config, Json, Listing, Url
from headgate_gateway.cli.output import print_json, print_table
from headgate_gateway.cli.times import moment, when

if TYPE_CHECKING:
    from headgate_gateway.domain.commands import KeyCreated


def register(application: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="Who may call, and how much.", cls=Listing)
    group.command("create")(create)
    group.command("list")(list_keys)
    group.command("revoke")(revoke)
    group.command("rotate")(rotate)
    application.add_typer(group, name="keys")


def create(
    project: Annotated[str, typer.Option("--project", "-p", help="Made when it is missing.")],
    organization: Annotated[str, typer.Option(help="Made when it is missing.")] = "default",
    budget: Annotated[
        str | None, typer.Option(help="AMOUNT/WINDOW, window total, hour, day, week or month: 1.00/month.")
    ] = None,
    timezone: Annotated[str, typer.Option(help="IANA zone whose calendar the budget follows.")] = "UTC",
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens a minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests in flight.")] = None,
    models: Annotated[str | None, typer.Option(help="Only these models: a,b.")] = None,
    any_model: AnyModel = False,
    scopes: Annotated[str, typer.Option(help="inference, usage, admin.")] = "inference,usage",
    expires: Annotated[
        str | None, typer.Option(help="ISO 8601 date or time, UTC unless it says otherwise.")
    ] = None,
    max_output: Annotated[int | None, typer.Option(min=1, help="Output tokens of a request at most.")] = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import CreateKey, KeyCreated

    command = CreateKey(
        project=project,
        organization=organization,
        budget=budget,
        timezone=timezone,
        rpm=rpm,
        tpm=tpm,
        concurrency=concurrency,
        models=frozenset(_listed(models)) if models is not None else None,
        scopes=frozenset(_listed(scopes)),
        expires_at=moment(expires, "--expires"),
        max_output=max_output,
        name=name,
        any_model=any_model,
    )
    with administration(config, url) as admin:
        made = admin.carry_out(command, KeyCreated)
    _show_key(made, json=json)


def _show_key(made: KeyCreated, *, json: bool) -> None:
    if json:
        print_json({"id": made.id, "key": made.key, "project": made.project, "organization": made.organization})
        return
    typer.echo(made.key)
    typer.echo(f"{made.id}; the key is not shown again", err=True)


def list_keys(
    project: Annotated[str | None, typer.Option("--project", "-p", help="Only this project's.")] = None,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """List keys; never the keys themselves."""
    from headgate_gateway.cli.account_views import budgets_told, key_document, limits_told, read_keys
    from headgate_gateway.cli.administration import administration

    with administration(config, url) as admin:
        keys = list(read_keys(admin, project))
    if json:
        print_json({"keys": [key_document(key) for key in keys]})
        return
    rows = [
        (
            key.id,
            f"{key.prefix}…",
            key.project,
            key.name,
            budgets_told(key.account),
            limits_told(key.account),
            "revoked" if key.revoked_at else f"until {when(key.expires_at)}" if key.expires_at else "active",
        )
        for key in keys
    ]
    columns = ("id", "key", "project", "name", "budget", "limits", "state")
    print_table(columns, rows, empty="no keys; make one with `headgate keys create --project NAME`")


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="key_...")],
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """End a key, at once and for good."""
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import Done, RevokeKey

    with administration(config, url) as admin:
        done = admin.carry_out(RevokeKey(id=key_id), Done)
    if json:
        print_json({"id": key_id, "revoked": True, "changed": done.changed})
    else:
        typer.echo(f"revoked {key_id}" if done.changed else f"{key_id} was revoked before")


def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="key_...")],
    overlap: Annotated[int, typer.Option(min=0, help="Seconds that the old key goes on working.")] = 0,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Make a key with the same rights, limits, budgets and prices, and let the old one end.

    A budget of the key itself starts anew with it; budgets of project and organization go on. What is left of
    credit of the key itself goes over to it.
    """
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import KeyCreated, RotateKey

    with administration(config, url) as admin:
        made = admin.carry_out(RotateKey(id=key_id, overlap_s=overlap), KeyCreated)
    _show_key(made, json=json)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]

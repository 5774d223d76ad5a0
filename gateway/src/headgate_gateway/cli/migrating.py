"""`headgate migrate`: the one way in which a PostgreSQL database gets a schema. May import settings, ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headgate_gateway.cli.options import Config, Json, fail, load_settings
from headgate_gateway.cli.output import print_json

if TYPE_CHECKING:
    from headgate_gateway.ledger.postgres.schema import Migrated


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(migrate)


def migrate(
    contract: Annotated[
        bool,
        typer.Option(
            "--contract", help="Also let go of what only programs of before need: once every node is new."
        ),
    ] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring a PostgreSQL database to the schema of this program, while nodes serve it."""
    from headgate_gateway.settings import SecretError, database, shown_database

    settings = load_settings(config)
    try:
        url, place = database(settings), shown_database(settings)
    except SecretError as error:
        fail(str(error))
    if url is None:
        if json:
            print_json({"store": "sqlite", "before": None, "after": None, "waiting": []})
        else:
            typer.echo(f"{place}: SQLite is migrated by `headgate serve` itself, after a copy; nothing to do")
        return
    done = _migrated(url, place, contract=contract)
    if json:
        waiting = list(done.waiting)
        print_json({"store": "postgresql", "before": done.before, "after": done.after, "waiting": waiting})
        return
    if done.before == done.after:
        typer.echo(f"{place}: schema {done.after}, as before")
    else:
        typer.echo(f"{place}: schema {done.after} (before: {done.before or 'none'})")
    if done.waiting:
        typer.echo(
            f"{', '.join(done.waiting)}: waiting until every node runs this program; then `migrate --contract`"
        )


def _migrated(url: str, place: str, *, contract: bool) -> Migrated:
    import psycopg

    from headgate_gateway.ledger.postgres import schema

    try:
        return schema.migrate(url, contract=contract)
    except (psycopg.Error, schema.WrongSchema) as error:
        fail(f"{place}: {str(error).strip()}")

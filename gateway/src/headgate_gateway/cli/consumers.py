"""`headgate consumers`: who takes usage records, and how far they have come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headgate_gateway.cli.options import Config, Json, Listing, Url, fail, load_settings
from headgate_gateway.cli.output import print_json, print_table
from headgate_gateway.cli.times import when

if TYPE_CHECKING:
    from headgate_gateway.admin.usage import UsageReader
    from headgate_gateway.domain.commands import MoveCursor, Rejected
    from headgate_gateway.settings import Settings

    Command = Callable[[UsageReader, Settings], Coroutine[Any, Any, MoveCursor | Rejected]]

Name = Annotated[str, typer.Argument(help="The consumer's plugin.")]


def register(application: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="Plugins that take usage records.", cls=Listing)
    for name, function in (("list", list_consumers), ("reset", reset_consumer), ("remove", remove_consumer)):
        group.command(name)(function)
    application.add_typer(group, name="consumers")


def list_consumers(config: Config = None, url: Url = None, json: Json = False) -> None:
    """List consumers: the last record that each has taken, how far it is behind, why it comes no further."""
    from headgate_gateway.admin.usage import QueryTooSlow, UsageUnavailable
    from headgate_gateway.cli.records import reader_of

    try:
        found = asyncio.run(reader_of(config, url).consumers())
    except (QueryTooSlow, UsageUnavailable) as error:
        fail(str(error))
    fields = ("name", "position", "behind", "oldest_at", "error")
    rows = [(c.name, c.position, c.behind, when(c.oldest_at), c.error) for c in found]
    if json:
        print_json({"consumers": [dict(zip(fields, row, strict=True)) for row in rows]})
        return
    columns = ("consumer", "has taken", "behind", "since", "error")
    print_table(columns, rows, empty="no plugin takes usage records")


def reset_consumer(
    name: Name,
    to: Annotated[
        str, typer.Option(metavar="beginning|now|RECORD", help="A record by request id or number: it comes next.")
    ],
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Let a consumer go on elsewhere: what comes after is handed to it, once more where it had been."""
    from headgate_gateway.admin.consumers import resetting

    path, document = f"/consumers/{_quoted(name)}/reset", {"to": to}
    _move(lambda reader, settings: resetting(reader, settings, name, to), "POST", path, document, config, url)
    _told(name, f"{name} goes on from {to}", json=json)


def remove_consumer(name: Name, config: Config = None, url: Url = None, json: Json = False) -> None:
    """Forget how far a consumer has come: its plugin is gone. One that is still there begins anew, at now."""
    from headgate_gateway.admin.consumers import removing

    path = f"/consumers/{_quoted(name)}"
    _move(lambda reader, _: removing(reader, name), "DELETE", path, None, config, url)
    _told(name, f"{name} is forgotten", json=json)


def _move(
    command: Command,
    method: str,
    path: str,
    document: dict[str, str] | None,
    config: Path | None,
    url: str | None,
) -> None:
    if url is not None:
        from headgate_gateway.cli.remote_administration import RemoteAdmin

        RemoteAdmin(url).do(method, path, document)
        return
    from headgate_gateway.admin.usage import QueryTooSlow, UsageUnavailable, usage_reader
    from headgate_gateway.cli.administration import administration, refuse
    from headgate_gateway.domain.commands import Done, Rejected

    with administration(config) as admin:  # first, because it may make or migrate the store
        settings = load_settings(config)
        try:
            found = asyncio.run(command(usage_reader(settings), settings))
        except (QueryTooSlow, UsageUnavailable) as error:
            fail(str(error))
        if isinstance(found, Rejected):
            refuse(found)
        admin.carry_out(found, Done)


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def _told(name: str, message: str, *, json: bool) -> None:
    if json:
        print_json({"id": name})
    else:
        typer.echo(message)

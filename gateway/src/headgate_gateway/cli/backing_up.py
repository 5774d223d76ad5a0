"""`headgate backup` and `restore`: SQLite's store as one file. May import settings and the ledger."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headgate_gateway.cli.options import BAD_INPUT, Config, Json, fail, load_settings
from headgate_gateway.cli.output import print_json

if TYPE_CHECKING:
    from headgate_gateway.ledger.backup import Copied
    from headgate_gateway.settings import Settings

DATABASE: Final = "the store is PostgreSQL, which has its own means: see docs/operating.md"


def register(application: typer.Typer) -> None:
    """Add these commands."""
    application.command()(backup)
    application.command()(restore)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What is made; it must not be there yet.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """Copy the store into a file and audit the copy, while the gateway serves or not.

    Keep the pepper too, somewhere else: without it the file is of no use.
    """
    from headgate_gateway.ledger.backup import BadCopy, back_up

    settings, key = _sqlite(config)
    if not settings.layout.store.exists():
        fail(f"there is no store at {settings.layout.store}")
    try:
        copied = back_up(settings.layout, key, file.absolute())
    except FileExistsError as error:
        fail(str(error), BAD_INPUT)
    except (BadCopy, OSError, sqlite3.Error) as error:
        fail(f"no backup was made: {error}")
    _tell(file, copied, {}, json=json)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `headgate backup` made.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """Make a backup the store again, once it was audited; what it replaces is set aside in the data folder.

    The gateway must not serve meanwhile. What was spent and changed since the backup is not in it.
    """
    from headgate_gateway.clock import SystemClock
    from headgate_gateway.ledger.backup import BadCopy, put_back
    from headgate_gateway.ledger.process import AlreadyServed, locked
    from headgate_gateway.supervisor.data_folder import serving_pid

    settings, key = _sqlite(config)
    layout = settings.layout
    if not file.is_file():
        fail(f"there is no file {file}", BAD_INPUT)
    if (pid := serving_pid(layout)) is not None:
        fail(f"process {pid} serves {layout.data_dir}: stop it first")
    aside = layout.data_dir / f"replaced-{SystemClock().now_us()}"
    try:
        with locked(layout, wait_s=0):
            copied = put_back(layout, key, file.absolute(), aside)
    except (AlreadyServed, BadCopy, OSError, sqlite3.Error) as error:
        fail(f"nothing was restored: {error}")
    _tell(layout.store, copied, {"replaced": str(aside) if aside.exists() else None}, json=json)


def _sqlite(config: Path | None) -> tuple[Settings, bytes]:
    """The settings of a deployment on SQLite, and the key of its chain."""
    from headgate_gateway.ledger.chain import chain_key
    from headgate_gateway.settings import SecretError, database, pepper

    settings = load_settings(config)
    try:
        if database(settings) is not None:
            fail(DATABASE, BAD_INPUT)
        return settings, chain_key(pepper(settings))
    except SecretError as error:
        fail(str(error))


def _tell(file: Path, copied: Copied, more: dict[str, Any], *, json: bool) -> None:
    if json:
        facts = {"file": str(file), "bytes": copied.size, "began": copied.audit.began}
        print_json({**facts, "checked": copied.audit.checked, **more})
        return
    typer.echo(f"{file}: {copied.size} bytes, everything re-derives since {copied.audit.began}")
    for what, place in more.items():
        if place is not None:
            typer.echo(f"{what}: {place}")

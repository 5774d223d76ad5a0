"""`headgate archive`: old history goes into files, and leaves the store. May import settings and the ledger.

The files lie on this machine, so there is no `--url`. The ledger that serves notes them, or one for the moment.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headgate_gateway.cli.administration import connect
from headgate_gateway.cli.options import BAD_INPUT, Config, Json, fail, load_settings
from headgate_gateway.cli.output import print_json, print_table
from headgate_gateway.cli.times import moment, when

if TYPE_CHECKING:
    from headgate_gateway.domain.commands import Command
    from headgate_gateway.ledger.archiving import Archived
    from headgate_gateway.settings import Settings

SWEPT_S: Final = 600.0
"""How long the command waits for the ledger to delete what was archived; the ledger goes on by itself."""

LOOK_S: Final = 0.05

Keep = Callable[["Command"], None]


class _Refused(Exception):
    """The ledger did not carry a command out."""


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(archive)


def archive(
    before: Annotated[
        str,
        typer.Option(help="Archive up to the last seal made by then: ISO 8601, UTC unless it says otherwise."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the files go; default: the folder archive in the data folder.", show_default=False
        ),
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Move old history into files: one for each seal, verified before anything is deleted.

    Killed at any point, it is ended by running it again.
    """
    from headgate_gateway import crashpoints
    from headgate_gateway.settings import crash_order

    crashpoints.arm(crash_order())
    before_us = moment(before, "--before")
    assert before_us is not None
    settings = load_settings(config)
    folder = out if out is not None else settings.layout.data_dir / "archive"
    files, swept = asyncio.run(_carried_out(settings, folder, before_us))
    if json:
        print_json({"files": [_document(file) for file in files], "deleted": swept})
        return
    fields = ("file", "seal", "until", "rows", "bytes")
    lines = [[_document(file)[field] for field in fields] for file in files]
    print_table(fields, lines, empty="no seal that was not archived yet was made by then: nothing to archive")
    if not swept:
        typer.echo("the ledger still deletes what was archived; it goes on by itself", err=True)


def _document(file: Archived) -> dict[str, Any]:
    return {
        "file": str(file.path), "seal": file.seal, "until": when(file.until_us), "rows": file.rows,
        "bytes": file.size, "sha256": file.hash.hex(),
    }  # fmt: skip


async def _carried_out(settings: Settings, folder: Path, before_us: int) -> tuple[list[Archived], bool]:
    """Archive on a thread, while a ledger for the moment may run here."""
    from headgate_gateway.domain.commands import Rejected
    from headgate_gateway.ledger.archiving import FolderBusy, NotYet
    from headgate_gateway.ledger.line import LedgerUnavailable
    from headgate_gateway.ledger.replay import Differs
    from headgate_gateway.ledger.store import StoreFailed
    from headgate_gateway.settings import SecretError

    loop = asyncio.get_running_loop()
    try:
        async with AsyncExitStack() as stack:
            command = await connect(settings, stack)

            def keep(asked: Command) -> None:
                result = asyncio.run_coroutine_threadsafe(_awaited(command(asked)), loop).result()
                if isinstance(result, Rejected):
                    raise _Refused(result.message)

            return await asyncio.to_thread(_archive, settings, folder, before_us, keep)
    except NotYet as error:
        fail(f"--before: {error}", BAD_INPUT)
    except Differs as difference:
        fail(f"nothing more is archived: {difference}")
    except (_Refused, FolderBusy, LedgerUnavailable, SecretError, StoreFailed, OSError) as error:
        fail(f"nothing more is archived: {error}")
    except _store_errors(settings) as error:
        fail(f"nothing more is archived, because the store cannot be read: {str(error).strip()}")


def _store_errors(settings: Settings) -> tuple[type[Exception], ...]:
    from headgate_gateway.settings import database

    if database(settings) is None:
        return (sqlite3.Error,)
    import psycopg

    from headgate_gateway.ledger.postgres.read_only import TooLong

    return psycopg.Error, TooLong


async def _awaited(result: Any) -> Any:
    return await result


def _archive(settings: Settings, folder: Path, before_us: int, keep: Keep) -> tuple[list[Archived], bool]:
    from headgate_gateway.clock import SystemClock
    from headgate_gateway.ledger.archiving import archive_before
    from headgate_gateway.ledger.sealing import opened

    clock = SystemClock()
    with opened(settings) as (history, key):
        files = list(archive_before(history, key, folder, before_us, clock.now_us(), keep))
        until = clock.monotonic() + SWEPT_S
        pause = threading.Event()
        while not (swept := history.swept()) and clock.monotonic() < until:
            pause.wait(LOOK_S)
    return files, swept

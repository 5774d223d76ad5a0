"""The command line put together. Imports the commands' modules, which import typer and little else."""

from __future__ import annotations

from typing import Annotated

import typer

from headgate_gateway.cli import (
    accounts,
    archiving,
    backing_up,
    configuring,
    consumers,
    keys,
    migrating,
    models,
    prices,
    records,
    serving,
    tags,
)

application = typer.Typer(
    name="headgate",
    help="One gate in front of every model, with budgets that hold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_MODULES = (
    serving, configuring, models, keys, accounts, prices, records, tags, consumers, archiving, backing_up,
    migrating,
)  # fmt: skip
for module in _MODULES:
    module.register(application)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"headgate {version('headgate-gateway')}")
        raise typer.Exit


@application.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """One gate in front of every model, with budgets that hold."""

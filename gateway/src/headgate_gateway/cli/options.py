"""Options that several commands share, and how they end. Imports typer and the standard library.

Exit codes: 0 it was done, 1 it failed (an audit found a difference, the gateway cannot be reached), 2 the command
line or the config is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from headgate_gateway.config_file import ConfigFile
    from headgate_gateway.settings import Settings

FAILED = 1
BAD_INPUT = 2

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="The config; default $HEADGATE_CONFIG or ./headgate.toml.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")]
Url = Annotated[
    str | None,
    typer.Option("--url", help="Ask this gateway over HTTP, with the admin key in $HEADGATE_ADMIN_KEY."),
]

AnyModel = Annotated[
    bool,
    typer.Option("--any-model", help="Take a model that the config does not name (yet).", show_default=False),
]


class Listing(TyperGroup):
    """A group of commands that lists where none is named: `headgate accounts --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """End the command with a line on stderr."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def load_config(given: Path | None) -> ConfigFile | None:
    """The config as far as the file goes; None when no file was named and there is none. Exits 2 on a bad one."""
    from headgate_gateway.config_file import ConfigError, read_config
    from headgate_gateway.settings import config_path

    path = config_path(given)
    if given is None and not path.exists():
        return None
    try:
        return read_config(path)
    except ConfigError as error:
        fail(str(error), BAD_INPUT)


def load_settings(given: Path | None) -> Settings:
    """The settings of the config, or those that `serve` has without one."""
    from headgate_gateway.config_file import resolve_paths
    from headgate_gateway.settings import default_settings

    config = load_config(given)
    return config.settings if config else resolve_paths(default_settings(), Path.cwd())

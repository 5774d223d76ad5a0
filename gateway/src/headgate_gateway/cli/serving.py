"""`headgate serve` and `reload`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headgate_gateway.cli.options import BAD_INPUT, Config, Json, fail, load_config, load_settings
from headgate_gateway.cli.output import print_json

if TYPE_CHECKING:
    from headgate_gateway.config_file import ConfigFile
    from headgate_gateway.settings import Settings

RELOAD_PATIENCE_S: Final = 1200.0
POLL_S: Final = 0.1


def register(application: typer.Typer) -> None:
    """Add these commands."""
    application.command()(serve)
    application.command()(reload)


def serve(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Instead of server.host.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Instead of server.port; 0 takes a free one.", min=0, max=65535)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Instead of server.workers.", min=1, max=256)] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Instead of server.data_dir.")] = None,
) -> None:
    """Start the gateway; without a config, with the echo model."""
    from random import SystemRandom

    from headgate_gateway.cli.start_view import StartView
    from headgate_gateway.ledger.line import LedgerUnavailable
    from headgate_gateway.plugins import load_consumers
    from headgate_gateway.settings import SecretError
    from headgate_gateway.supervisor.child import ChildFailed
    from headgate_gateway.supervisor.data_folder import AlreadyServed, DataFolderError
    from headgate_gateway.supervisor.listening import AddressInUse
    from headgate_gateway.supervisor.model_log import note_model
    from headgate_gateway.supervisor.price_sync import sync_prices
    from headgate_gateway.supervisor.supervisor import Supervisor
    from headgate_gateway.telemetry import logs

    def overridden(settings: Settings) -> Settings:
        given = {
            "host": host,
            "port": port,
            "workers": workers,
            "data_dir": data_dir.absolute() if data_dir else None,
        }
        server = settings.server.model_copy(update={k: v for k, v in given.items() if v is not None})
        log = settings.log.model_copy(update={"format": "text" if logs.is_text(settings.log) else "json"})
        return settings.model_copy(update={"server": server, "log": log})

    file = load_config(config)
    settings = overridden(_ready_to_serve(file) if file else load_settings(None))
    logs.configure(settings.log, "supervisor")
    view = StartView(settings, config=file.path if file else None)

    async def run() -> None:
        supervisor = Supervisor(
            settings,
            reread=_rereader(file.path, overridden) if file else None,
            write_line=view.write_line,
            random=SystemRandom(),
            sync_prices=sync_prices,
            note_model=note_model,
            consumers=lambda settings: load_consumers(settings.plugin_names),
            on_serving=view.serving,
            on_status=view.changed,
        )
        await supervisor.run()

    try:
        with view:
            asyncio.run(run())
    except AlreadyServed as error:
        fail(str(error))
    except (DataFolderError, AddressInUse, ChildFailed, LedgerUnavailable, SecretError, ValueError) as error:
        fail(f"headgate cannot serve: {error}")


def _checked(file: ConfigFile) -> Settings:
    from headgate_gateway.config_checks import against_plugins

    if problems := against_plugins(file.settings):
        fail(str(file.error(problems)), BAD_INPUT)
    return file.settings


def _ready_to_serve(file: ConfigFile) -> Settings:
    """The checked settings, once every credential was found: a worker without one could not start."""
    from headgate_gateway.config_checks import unreadable_secrets

    settings = _checked(file)
    if problems := unreadable_secrets(settings):
        fail(str(file.error(problems)), BAD_INPUT)
    return settings


def _rereader(path: Path, overridden: Callable[[Settings], Settings]) -> Callable[[], Settings]:
    """Reads and checks the config again, whole."""
    from headgate_gateway.config_checks import against_plugins, unreadable_secrets
    from headgate_gateway.config_file import read_config

    def reread() -> Settings:
        file = read_config(path)
        if problems := against_plugins(file.settings) or unreadable_secrets(file.settings):
            raise file.error(problems)
        return overridden(file.settings)

    return reread


def reload(config: Config = None, json: Json = False) -> None:
    """Apply the config to the running gateway; a bad one changes nothing and exits 2."""
    from time import monotonic, sleep

    from headgate_gateway.supervisor.data_folder import served_out_of_reach, serving_pid
    from headgate_gateway.supervisor.status import read_status

    file = load_config(config)
    if file is None:
        fail("there is no config file to reload", BAD_INPUT)
    layout = _checked(file).layout
    pid, before = serving_pid(layout), read_status(layout.status)
    if pid is None or before is None:
        fail(f"nothing serves {layout.data_dir}{served_out_of_reach(layout)}")
    os.kill(pid, signal.SIGHUP)
    deadline = monotonic() + RELOAD_PATIENCE_S
    while (now := read_status(layout.status)) is None or now.reloads == before.reloads:
        if monotonic() > deadline or serving_pid(layout) != pid:
            fail("the gateway did not finish the reload")
        sleep(POLL_S)
    if json:
        print_json({"ok": now.reload_error is None, "generation": now.generation, "error": now.reload_error})
    elif now.reload_error is None:
        typer.echo(f"reloaded: {len(file.settings.models)} models, generation {now.generation}")
    if now.reload_error is not None:
        fail(f"nothing was changed: {now.reload_error}", BAD_INPUT)

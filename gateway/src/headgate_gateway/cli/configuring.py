"""`headgate init`, `check`, `plugins`, `doctor`, `routes explain`: the config and what is installed."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from headgate_gateway.cli.options import BAD_INPUT, Config, Json, fail, load_config, load_settings
from headgate_gateway.cli.output import print_json, print_table

TEMPLATE: Final = """\
# Headgate's config. Every setting: docs/config.md. `headgate check` says what is wrong with it.

[server]
host = "127.0.0.1"
port = 8080
workers = 1
data_dir = ".headgate"            # sockets, SQLite file, keys; relative to this file

# [store]
# url = "env:HEADGATE_DATABASE"   # PostgreSQL for several nodes: postgresql://user:password@host/database

[[models]]
id = "echo"                       # what callers ask for
task = "chat"
backend = "echo"                  # `headgate plugins` lists the installed ones
price = { input = "0.15", output = "0.60" }  # per million tokens

# A model somewhere else:
#
# [[models]]
# id = "gpt-4o-mini"
# task = "chat"
# price = { input = "0.15", cache_read = "0.075", output = "0.60" }
# [[models.targets]]
# backend = "openai"              # any OpenAI-compatible server
# model = "gpt-4o-mini"
# base_url = "https://api.openai.com/v1"
# api_key = "env:OPENAI_API_KEY"  # or file:PATH, cmd:COMMAND
"""


def register(application: typer.Typer) -> None:
    """Add these commands."""
    application.command()(init)
    application.command()(check)
    application.command()(plugins)
    application.command()(doctor)
    routes = typer.Typer(help="Where requests for a model go.", no_args_is_help=True)
    routes.command("explain")(explain)
    application.add_typer(routes, name="routes")


def init(
    config: Config = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a config to start from."""
    from headgate_gateway.settings import config_path

    path = config_path(config)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        fail(f"{path} exists already; --force overwrites it", BAD_INPUT)
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    typer.echo(f"wrote {path}; start it with `headgate serve`")


def check(config: Config = None, json: Json = False) -> None:
    """Validate the config, with the installed backends."""
    from headgate_gateway.config_checks import against_plugins
    from headgate_gateway.config_file import ConfigError, read_config
    from headgate_gateway.settings import config_path

    path = config_path(config)
    try:
        file = read_config(path)
        if problems := against_plugins(file.settings):
            raise file.error(problems)
    except ConfigError as error:
        if json:
            problems_ = [{"path": problem.path, "message": problem.message} for problem in error.problems]
            print_json({"file": str(path), "ok": False, "problems": problems_})
            raise typer.Exit(BAD_INPUT) from None
        fail(str(error), BAD_INPUT)
    count = len(file.settings.models)
    if json:
        print_json(
            {"file": str(path), "ok": True, "problems": [], "models": [m.id for m in file.settings.models]}
        )
    else:
        typer.echo(f"{path} is valid: {count} model{'' if count == 1 else 's'}")


def plugins(json: Json = False) -> None:
    """List the installed plugins, without importing them."""
    from headgate_gateway.plugins import installed

    found = installed()
    if json:
        print_json({"plugins": [vars(plugin) for plugin in found]})
        return
    rows = [(plugin.name, plugin.distribution, plugin.version, plugin.module) for plugin in found]
    print_table(("name", "distribution", "version", "module"), rows, empty="no plugins are installed")


def doctor(config: Config = None, json: Json = False) -> None:
    """Look at what the gateway needs from this machine, and print the fix for what is missing."""
    from headgate_gateway.cli.diagnosis import examine

    findings = examine(load_settings(config))
    if json:
        print_json({"ok": all(f.ok for f in findings), "checks": [vars(finding) for finding in findings]})
    else:
        rows = [("ok" if f.ok else "PROBLEM", f.name, f.found, f.fix) for f in findings]
        print_table(("", "check", "found", "fix"), rows, empty="nothing to check")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def explain(
    model: Annotated[str, typer.Argument(help="A model's id or alias.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """Show in which order a model's targets are tried."""
    file = load_config(config)
    settings = file.settings if file else load_settings(config)
    found = next((m for m in settings.models if model == m.id or model in m.aliases), None)
    if found is None:
        fail(f'no model "{model}" (there are: {", ".join(m.id for m in settings.models) or "none"})', BAD_INPUT)
    routes: list[dict[str, Any]] = []
    if found.backend is not None:
        place = f"{found.replicas} engine{'' if found.replicas == 1 else 's'} on {found.device}"
        routes.append({"priority": 0, "share": 1.0, "backend": found.backend, "target": found.id, "at": place})
    for target in sorted(found.targets, key=lambda target: target.priority):
        beside = sum(other.weight for other in found.targets if other.priority == target.priority)
        routes.append(
            {
                "priority": target.priority,
                "share": round(target.weight / beside, 4) if beside else 0.0,
                "backend": target.backend,
                "target": target.model or found.id,
                "at": target.base_url or "this gateway",
            }
        )
    if json:
        print_json({"model": found.id, "task": found.task, "routes": routes})
        return
    rows = [(r["priority"], f"{r['share']:.0%}", r["backend"], r["target"], r["at"]) for r in routes]
    print_table(("priority", "share", "backend", "model", "at"), rows, empty="it has no targets")


__all__ = ["TEMPLATE", "check", "doctor", "explain", "init", "plugins", "register"]

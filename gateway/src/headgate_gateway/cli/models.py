"""`headgate models list|load|unload|import`: what is served, and turning files of others into model folders."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headgate_gateway.cli.options import BAD_INPUT, FAILED, Config, Json, Listing, Url, fail, load_settings
from headgate_gateway.cli.output import print_json, print_table

if TYPE_CHECKING:
    from headgate_plugin_api import ImportJob, JsonValue, Task

    from headgate_gateway.models.control import Action
    from headgate_gateway.settings import Model

TASKS: Final[tuple[Task, ...]] = ("chat", "completion", "embed", "rerank", "classify", "infer")
MAX_LINE: Final = 1 << 20


def register(application: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="The models of the config.", cls=Listing)
    group.command("list")(list_models)
    group.command("load")(load_model)
    group.command("unload")(unload_model)
    group.command("import")(import_model)
    application.add_typer(group, name="models")


def list_models(config: Config = None, url: Url = None, json: Json = False) -> None:
    """List the configured models, and how they are while a gateway serves them."""
    if url is not None:
        from headgate_gateway.cli.remote_administration import RemoteAdmin

        _show_models(RemoteAdmin(url).get("/models", {})["data"], serving=True, json=json)
        return
    models, serving = _models_here(config)
    _show_models(models, serving=serving, json=json)


def _show_models(models: list[dict[str, Any]], *, serving: bool, json: bool) -> None:
    if json:
        print_json({"serving": serving, "models": models})
        return
    rows = [(m["id"], m["task"], ", ".join(m["backends"]), m["device"], m["state"], m["detail"]) for m in models]
    print_table(("model", "task", "backend", "device", "state", "detail"), rows, empty="the config has no models")


def _models_here(config: Path | None) -> tuple[list[dict[str, Any]], bool]:
    """The models of the config, and whether a gateway serves them."""
    from headgate_gateway.supervisor.data_folder import serving_pid
    from headgate_gateway.supervisor.status import read_status

    settings = load_settings(config)
    status = read_status(settings.layout.status) if serving_pid(settings.layout) else None
    models: list[dict[str, Any]] = []
    for model in settings.models:
        engines = [engine for engine in (status.engines if status else ()) if engine.model == model.id]
        states = [engine.state for engine in engines]
        models.append(
            {
                "id": model.id,
                "aliases": list(model.aliases),
                "task": model.task,
                "backends": [model.backend] if model.backend else [target.backend for target in model.targets],
                "device": engines[0].device if engines else model.device if model.backend else "remote",
                "state": _together(states) if states else _without_engines(model, serving=status is not None),
                "detail": next((engine.detail for engine in engines if engine.detail), ""),
            }
        )
    return models, status is not None


def _without_engines(model: Model, *, serving: bool) -> str:
    if not serving:
        return "not served"
    return "ready" if model.targets else "unloaded"


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A local model's id.")]


def load_model(model: ModelName, config: Config = None, url: Url = None, json: Json = False) -> None:
    """Start the engines of a model that was unloaded; returns when it is ready."""
    _control("load", model, config, url, json=json)


def unload_model(model: ModelName, config: Config = None, url: Url = None, json: Json = False) -> None:
    """End the engines of a model, until it is loaded again or the config is: its memory is free then."""
    _control("unload", model, config, url, json=json)


def _control(action: Action, model: str, config: Path | None, url: str | None, *, json: bool) -> None:
    from headgate_gateway.models.control import NobodyThere, ask

    if url is not None:
        from headgate_gateway.cli.remote_administration import RemoteAdmin

        document = RemoteAdmin(url).control(action, model)
    else:
        try:
            told = asyncio.run(ask(load_settings(config).layout, action, model))
        except (NobodyThere, TimeoutError) as error:
            fail(str(error) or f"{model} was not ready in time")
        if told.code != "done":
            fail(told.message, FAILED if told.code == "failed" else BAD_INPUT)
        document = {"id": model, "state": "ready" if action == "load" else "unloaded"}
    if json:
        print_json(document)
    else:
        typer.echo(f"{document['id']} is {document['state']}")


def _together(states: list[str]) -> str:
    """The state of a model from its replicas': one that is ready answers for it."""
    return "ready" if "ready" in states else states[0]


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, .onnx|.safetensors|.pt2|.pt|.skops|.keras, hf://org/name, or py:file.py:function."
        ),
    ],
    model_id: Annotated[str, typer.Option("--id", help="What callers will ask for.")],
    backend: Annotated[str, typer.Option(help="Which backend will run it.")],
    task: Annotated[str | None, typer.Option(help=f"{', '.join(TASKS)}; default what the source says.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; default models/ID beside the config.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="NAME=VALUE for the importer.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Turn a model into a folder that a backend serves, with a manifest of what it is."""
    from headgate_plugin_api import ImportJob

    from headgate_gateway.plugins import PluginError, load_importers

    known: Task | None = next((name for name in TASKS if name == task), None)
    if known != task:
        fail(f'--task: expected one of {", ".join(TASKS)}, not "{task}"', BAD_INPUT)
    beside = config.parent if config is not None else Path()
    folder = out or beside / "models" / model_id.replace("/", "--")
    job = ImportJob(
        source=source,
        id=model_id,
        task=known,
        backend=backend,
        out=str(folder),
        options=dict(_option(text) for text in option or []),
    )
    try:
        load_importers([backend])
    except PluginError as error:
        fail(str(error), BAD_INPUT)
    manifest = asyncio.run(_import(job, quiet=json))
    if json:
        print_json({"folder": str(folder), "manifest": manifest})
        return
    typer.echo(f"wrote {folder}: {manifest.get('task')}, {len(manifest.get('files', {}))} files")
    typer.echo(f'serve it with:\n\n[[models]]\nid = "{model_id}"\ntask = "{manifest.get("task")}"')
    typer.echo(f'backend = "{backend}"\nsource = "{folder}"')


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is JSON is what it says, anything else is text."""
    import json as json_

    name, equals, value = text.partition("=")
    if not name or not equals:
        fail(f'--option: expected NAME=VALUE, not "{text}"', BAD_INPUT)
    try:
        return name, json_.loads(value)
    except ValueError:
        return name, value


async def _import(job: ImportJob, *, quiet: bool) -> dict[str, Any]:
    """Run the importer in a child process: whatever it imports, and however it dies, it is not us."""
    import sys
    import tempfile

    import msgspec
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with tempfile.NamedTemporaryFile(suffix=".json") as file, Progress(*columns, console=console) as progress:
        file.write(msgspec.json.encode(job))
        file.flush()
        bar = progress.add_task(f"importing {job.source}", total=1.0)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headgate_engine.importing", "--job", file.name),
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
        )
        assert child.stdout is not None
        last: dict[str, Any] = {}
        try:
            async for line in child.stdout:
                last = _progress_line(line) or last
                if "fraction" in last:
                    progress.update(bar, completed=float(last["fraction"]), description=str(last.get("what", "")))
            code = await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        progress.update(bar, completed=1.0)
    if code != 0:
        fail(str(last.get("error") or f"the importer ended with exit code {code}; its output is above"))
    return _manifest(Path(job.out))


def _progress_line(line: bytes) -> dict[str, Any] | None:
    import json as json_

    try:
        document: JsonValue = json_.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _manifest(folder: Path) -> dict[str, Any]:
    import msgspec
    from headgate_plugin_api import LoadFailed, read_manifest

    try:
        manifest: dict[str, Any] = msgspec.to_builtins(read_manifest(folder, verify=False))
    except LoadFailed as error:
        fail(f"the importer wrote no manifest: {error}")
    return manifest

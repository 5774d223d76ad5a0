"""Finding a backend by its name, before anything of any plugin is imported. May import the plugin API."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import msgspec
import pluggy
from headgate_plugin_api import (
    API_VERSION,
    ENTRY_POINT_GROUP,
    Backend,
    EngineBackend,
    Importer,
    LoadFailed,
    ModelSpec,
)
from headgate_plugin_api import hookspecs as specifications


def find_backend(name: str) -> EngineBackend:
    """The engine backend of that name. Only the plugin whose entry point has the name is imported.

    Raises:
        LoadFailed: None is installed, it does not import, it was built for another API, or it does not run
            in engines.
    """
    manager = _manager(name)
    backends: dict[str, Backend] = {}

    def register(backend: Backend) -> None:
        backends[backend.name] = backend

    manager.hook.headgate_register_backends(register=register)
    backend = backends.get(name)
    if backend is None:
        raise LoadFailed(f"plugin {name!r} registers no backend of that name, only {sorted(backends)}")
    if backend.kind != "engine":
        raise LoadFailed(f"backend {name!r} is {backend.kind}: it runs in the gateway, not in an engine")
    return backend


def find_importers(name: str) -> list[Importer]:
    """The importers that the plugin of that name brings for its backend, in the order in which to ask them.

    Raises:
        LoadFailed: As for `find_backend`.
    """
    importers: list[Importer] = []
    _manager(name).hook.headgate_register_importers(register=importers.append)
    return [importer for importer in importers if importer.backend == name]


def check_spec(backend: EngineBackend, spec: ModelSpec) -> None:
    """Check what can be checked of a spec before anything heavy is imported.

    Raises:
        LoadFailed: The backend does not do that task, or does not know an option.
    """
    if spec.task not in backend.tasks:
        raise LoadFailed(f"backend {spec.backend!r} does {sorted(backend.tasks)}, not {spec.task!r}")
    try:
        msgspec.convert(spec.options, backend.options_type)
    except msgspec.ValidationError as error:
        raise LoadFailed(f"options of backend {spec.backend!r}: {error}") from error


def _manager(name: str) -> pluggy.PluginManager:
    """A manager that knows the one plugin of that name."""
    plugin = _import(_entry_point(name))
    version = getattr(plugin, "HEADGATE_API", None)
    if version != API_VERSION:
        raise LoadFailed(f"plugin {name!r} was built for plugin API {version}, this engine has {API_VERSION}")
    manager = pluggy.PluginManager(specifications.PROJECT)
    manager.add_hookspecs(specifications)
    manager.register(plugin, name)
    return manager


def _entry_point(name: str) -> EntryPoint:
    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in installed:
        names = ", ".join(sorted(installed)) or "none"
        raise LoadFailed(
            f"no backend {name!r} is installed for {sys.executable}; installed: {names}."
            f" Try: pip install headgate-{name}"
        )
    return installed[name]


def _import(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:
        raise LoadFailed(f"plugin {entry.name!r} ({entry.value}) does not import: {error!r}") from error

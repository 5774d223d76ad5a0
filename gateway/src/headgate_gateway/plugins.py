"""Finding and loading plugins. The composition's door to them; the engine has its own, by the same rules.

A plugin is chosen by the name of its entry point *before* anything of it is imported: an installed plugin that is
slow to import costs nothing until a config names it. May import the plugin API and pricing.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Final

import pluggy
from headgate_plugin_api import API_VERSION, ENTRY_POINT_GROUP, Backend, Importer, hookspecs

from headgate_gateway.domain.pricing import parse_quote

PROJECT: Final = hookspecs.PROJECT
_log = logging.getLogger(__name__)

Consume = Callable[..., object]
"""Takes `records`, a slice of usage records; returns once it has them."""

_OURS: Final = {
    "echo": "headgate-echo",
    "onnx": "headgate-onnx",
    "torch": "headgate-torch",
    "openai": "headgate-remote",
}
"""Which distribution of ours brings a backend: metadata cannot tell that of what is not installed."""


class PluginError(Exception):
    """A plugin cannot be used; the message names it and says why."""


class UnknownBackend(PluginError):
    """No installed plugin brings this backend.

    Attributes:
        name: The backend that was asked for.
    """

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        hint = (
            f'; did you mean "{close[0]}"?'
            if close
            else f"; try `pip install {_OURS.get(name, f'headgate-{name}')}`"
        )
        super().__init__(f'no backend "{name}" is installed (installed: {", ".join(known) or "none"}){hint}')


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin, as its distribution's metadata tells; nothing of it was imported."""

    name: str
    module: str
    distribution: str
    version: str


def installed() -> list[PluginInfo]:
    """Every installed plugin, by name."""
    found = [
        PluginInfo(
            point.name,
            point.module,
            point.dist.name if point.dist else "?",
            point.dist.version if point.dist else "?",
        )
        for point in entry_points(group=ENTRY_POINT_GROUP)
    ]
    return sorted(set(found), key=lambda plugin: plugin.name)


def load_backends(names: Collection[str]) -> dict[str, Backend]:
    """The backends of these names, and nothing else.

    Raises:
        UnknownBackend: No plugin of such a name is installed.
        PluginError: One is, but it is built for another API version, fails to import, or does not bring the
            backend that its entry point is named after.
    """
    backends: dict[str, Backend] = {}
    for name, module in _modules(names):
        brought: dict[str, Backend] = {}

        def register(backend: Backend, brought: dict[str, Backend] = brought) -> None:
            brought[backend.name] = backend

        _hooks(module).headgate_register_backends(register=register)
        if name not in brought:
            raise PluginError(f'the plugin "{name}" ({module.__name__}) brings no backend of that name')
        backends[name] = brought[name]
    return backends


def load_importers(names: Collection[str] | None = None) -> list[Importer]:
    """The importers of these plugins (default: of all installed)."""
    importers: list[Importer] = []
    for _, module in _modules([plugin.name for plugin in installed()] if names is None else names):
        _hooks(module).headgate_register_importers(register=importers.append)
    return importers


def load_prices(names: Collection[str]) -> dict[str, Mapping[str, str]]:
    """The default prices of these plugins, by model. Where two name the same model, the first one's stands.

    Raises:
        UnknownBackend: No plugin of such a name is installed.
        PluginError: A price is none; the message names plugin and model.
    """
    prices: dict[str, Mapping[str, str]] = {}
    for name, module in _modules(names):

        def register(model: str, rates: Mapping[str, str], name: str = name) -> None:
            try:
                parse_quote(rates)
            except ValueError as error:
                raise PluginError(
                    f'the plugin "{name}" states a price of {model!r} that is none: {error}'
                ) from None
            prices.setdefault(model, rates)

        _hooks(module).headgate_register_prices(register=register)
    return prices


def load_consumers(names: Collection[str]) -> dict[str, Consume]:
    """What these plugins take usage records by, of those that do; one that cannot be used holds up no other."""
    found: dict[str, Consume] = {}
    for name in names:
        try:
            ((_, module),) = _modules([name])
        except PluginError as error:
            _log.error("usage records are not handed over: %s", error)
            continue
        hook = _hooks(module).headgate_usage_recorded
        if hook.get_hookimpls():
            found[name] = hook
    return found


def _modules(names: Collection[str]) -> Iterator[tuple[str, ModuleType]]:
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    for name in dict.fromkeys(names):
        if name not in points:
            raise UnknownBackend(name, sorted(points))
        yield name, _import(points[name])


def _import(point: EntryPoint) -> ModuleType:
    try:
        module = point.load()
    except Exception as error:
        raise PluginError(f'the plugin "{point.name}" ({point.value}) cannot be imported: {error}') from error
    if not isinstance(module, ModuleType):
        raise PluginError(f'the plugin "{point.name}" ({point.value}): expected a module')
    built_for = getattr(module, "HEADGATE_API", None)
    if built_for != API_VERSION:
        raise PluginError(
            f'the plugin "{point.name}" ({point.value}) is built for plugin API {built_for}, '
            f"this gateway has {API_VERSION}"
        )
    return module


def _hooks(module: ModuleType) -> Any:
    """The hooks of one plugin only."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    return manager.hook


def nearest_field(name: str, known: Sequence[str]) -> str:
    """What to say of an unknown option."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f'unknown option; did you mean "{close[0]}"?'
    return f"unknown option; expected one of {', '.join(known)}" if known else "this backend has no options"

"""Hook specifications. Hooks are synchronous and only register or observe; no request runs through one.

A hook implementation may declare fewer arguments than its specification, so specifications can grow.
Imports of ours only for types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from headgate_plugin_api.backend import Backend
    from headgate_plugin_api.records import UsageRecord

PROJECT = "headgate"
ENTRY_POINT_GROUP = "headgate.plugins"
"""The entry point's name is the name of the backend (or other thing) it brings: plugins are chosen by that
name *before* anything of them is imported."""

API_VERSION = 1
"""Version of this contract. A plugin module names the one it was built for as `HEADGATE_API = 1`."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def headgate_register_backends(register: Callable[[Backend], None]) -> None:
    """Hand over backends: call `register(backend)` for each."""


@hookspec
def headgate_register_dialects(register: Callable[[Any], None]) -> None:
    """Hand over wire dialects beyond the built-in ones. Reserved: nothing calls it yet."""


@hookspec
def headgate_register_importers(register: Callable[[Any], None]) -> None:
    """Hand over importers for `headgate models import`: objects with the `Importer` contract."""


@hookspec
def headgate_register_guards(register: Callable[[Any], None]) -> None:
    """Hand over guards that look at requests before they are admitted. Reserved: nothing calls it yet."""


@hookspec
def headgate_register_prices(register: Callable[[str, dict[str, str]], None]) -> None:
    """Hand over default prices: `register(model, {"input": "0.15", ...})`, decimal strings per million."""


@hookspec
def headgate_register_commands(register: Callable[[Any], None]) -> None:
    """Hand over typer apps that become sub-commands of `headgate`. Reserved: nothing calls it yet."""


@hookspec
def headgate_usage_recorded(records: Sequence[UsageRecord]) -> None:
    """Take usage records that were committed, at least once and in order; see docs/plugins.md.

    Runs in a process and on a thread of its own, and can hold nothing back. A call that raises is made again with
    the same records, and after a crash records may come a second time: `request_id` tells them apart.
    """

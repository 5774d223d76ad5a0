"""The entry point of the echo plugin, and all that a plugin's entry point should be: light.

Headgate finds this module by the name of its entry point (`echo`, see pyproject.toml), imports it only when a
model asks for that backend, checks `HEADGATE_API`, and calls the hook.
"""

from __future__ import annotations

from collections.abc import Callable

from headgate_plugin_api import Backend, hookimpl

from headgate_echo.backend import EchoBackend

HEADGATE_API = 1
"""The version of the plugin API that this plugin was built for."""


@hookimpl
def headgate_register_backends(register: Callable[[Backend], None]) -> None:
    """Hand the backend over."""
    register(EchoBackend())

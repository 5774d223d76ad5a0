"""Entry point: registers the backend `openai`. May import this distribution and the plugin API."""

from __future__ import annotations

from collections.abc import Callable

from headgate_plugin_api import Backend, hookimpl

from headgate_remote.openai import OpenAIBackend

HEADGATE_API = 1
"""The plugin API's version that this was built for."""


@hookimpl
def headgate_register_backends(register: Callable[[Backend], None]) -> None:
    """Hand over the backend."""
    register(OpenAIBackend())

"""The entry point: hands the backend over. Light: imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable

from headgate_plugin_api import Backend, hookimpl

from headgate_torch.backend import TorchBackend

HEADGATE_API = 1


@hookimpl
def headgate_register_backends(register: Callable[[Backend], None]) -> None:
    """Bring the backend `torch`."""
    register(TorchBackend())

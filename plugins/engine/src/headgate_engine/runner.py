"""What the host asks of whoever drives a model, whichever of the two ways. May import wire and the plugin API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from headgate_plugin_api import InferenceRequest

from headgate_engine.wire import Events, Failed

Deliver = Callable[[Sequence[Events | Failed]], None]
"""Takes what one pass made, for any requests. May be called on any thread."""


class Runner(Protocol):
    """Drives one loaded model on the thread that calls `run`; everything else is called by the host's loop."""

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        ...

    @property
    def running(self) -> int:
        """Requests that are being worked on."""
        ...

    def submit(self, request: InferenceRequest) -> None:
        """Take a request. Its answer, or why there is none, is delivered. Raises `Overloaded`,
        or `NotReady` once it is stopping.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Nobody waits for this request any more; `Failed` is delivered unless its end was already."""
        ...

    def run(self) -> None:
        """Drive the model until `stop`; then fail what is left and return."""
        ...

    def stop(self) -> None:
        """Make `run` return after the pass that it is in."""
        ...

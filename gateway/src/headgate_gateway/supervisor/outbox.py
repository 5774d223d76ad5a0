"""The outbox's child: there while a plugin asks for usage records. May import children, child and settings."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from headgate_gateway.settings import Settings
from headgate_gateway.supervisor.child import Child

GRACE_S: Final = 8.0
"""A little longer than the process itself takes to end."""


class Outbox:
    """Starts and ends it.

    Args:
        start: Starts the child.
        consumers: Which plugins of a config ask for records.
    """

    def __init__(self, start: Callable[[], Child], consumers: Callable[[Settings], Collection[str]]) -> None:
        self._start = start
        self._consumers = consumers
        self.child: Child | None = None

    async def apply(self, settings: Settings) -> None:
        """Let a new one take over, with the plugins that a config names now."""
        if self.child is not None:
            await self.child.stop(GRACE_S)
            self.child = None
        if self._consumers(settings):
            self.child = self._start()

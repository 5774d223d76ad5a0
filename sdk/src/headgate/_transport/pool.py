"""How the pool under httpx gives connections to requests: by its own books, and without looking at all for each.

httpcore asks the connections themselves, each for each, two or three times a request: with 32 in flight that is
six sevenths of a call's time. And what they say may be old: one that another thread was just given may pass for
idle and be closed. There is no public seam, so the pool's inner one is used, where it looks as expected.
"""
# ruff: noqa: SLF001  the pool's inner names are what this module is about

from __future__ import annotations

import time
from typing import Any

_NAMES = (
    "_assign_requests_to_connections", "_connections", "_requests", "_max_connections",
    "_max_keepalive_connections", "_http2", "create_connection",
)  # fmt: skip
_SWEEP_S = 1.0


def quicken(transport: object) -> None:
    """Let the pool of an httpx transport take the first connection that is free."""
    pool: Any = getattr(transport, "_pool", None)
    if not all(hasattr(pool, name) for name in _NAMES):
        return
    swept = time.monotonic()

    def assign() -> list[Any]:
        """Give waiting requests their connections; what is returned is closed by the caller."""
        nonlocal swept
        busy = {id(request.connection) for request in pool._requests if request.connection is not None}
        closing: list[Any] = []
        for request in pool._requests:
            if not request.is_queued():
                continue
            connection = _free(pool, request.request.url.origin, busy, closing)
            if connection is None:
                # All are busy, and thousands may wait: those behind this one find nothing either.
                return closing
            request.assign_to_connection(connection)
            busy.add(id(connection))
        # What is idle now has nobody waiting for it.
        now = time.monotonic()
        surplus = len(pool._connections) - len(busy) - pool._max_keepalive_connections
        if now - swept > _SWEEP_S or surplus > 0:
            swept = now
            _sweep(pool, busy, closing, surplus)
        return closing

    pool._assign_requests_to_connections = assign


def disown(transport: object) -> None:
    """Let go, in a forked child, of what its parent goes on using: of descriptors only, without a word to anyone.

    The pool's own way would wait for its lock, which a thread of the parent may have held.
    """
    for connection in getattr(getattr(transport, "_pool", None), "_connections", ()):
        connection.close()


def _sweep(pool: Any, busy: set[int], closing: list[Any], surplus: int) -> None:
    """Take out what is of no more use, and what is idle beyond the limit."""
    kept: list[Any] = []
    for connection in pool._connections:
        if id(connection) not in busy and (surplus > 0 or connection.is_closed() or connection.has_expired()):
            surplus -= 1
            closing.append(connection)
        else:
            kept.append(connection)
    pool._connections[:] = kept


def _free(pool: Any, origin: Any, busy: set[int], closing: list[Any]) -> Any:
    """A connection for a request: a free one, the newest first, else a new one if there is room, else None."""
    connections: list[Any] = pool._connections
    for connection in reversed(connections):
        taken = id(connection) in busy
        if (taken and not pool._http2) or not connection.can_handle_request(origin):
            continue
        if taken:
            if connection.is_available():
                return connection
        elif connection.is_closed() or connection.has_expired():
            connections.remove(connection)
            closing.append(connection)
        else:
            return connection
    if len(connections) >= pool._max_connections:
        idle = next((one for one in connections if id(one) not in busy), None)
        if idle is None:
            return None
        connections.remove(idle)
        closing.append(idle)
    connections.append(pool.create_connection(origin))
    return connections[-1]

"""Binding the address that clients connect to, once, before any worker starts. Imports nothing of ours."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Final

BACKLOG: Final = 2048


class AddressInUse(Exception):
    """Somebody else listens there, or the address cannot be had."""


async def bind(host: str, port: int, *, setting: str = "server.", patience_s: float = 0.0) -> socket.socket:
    """A bound, listening socket. A used port is an error at once.

    Args:
        host: Name or address.
        port: 0 lets the system choose.
        setting: How the settings of host and port begin, for messages.
        patience_s: How long to wait for the port, when it is a predecessor that still has it.

    Raises:
        AddressInUse: It cannot be bound.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise AddressInUse(f"{setting}host: {host}: {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    while True:
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or loop.time() >= deadline:
                raise AddressInUse(f"{setting}port: {host}:{port}: {error.strerror}") from error
            await asyncio.sleep(0.05)
        else:
            listener.setblocking(False)
            return listener


def address_of(listener: socket.socket, host: str, *, tls: bool) -> str:
    """The address for people, with the port that was given."""
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"{'https' if tls else 'http'}://{shown}:{port}"

"""Ports for servers that are started again where they were."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

LOWEST: Final = 10_000
ATTEMPTS: Final = 100
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port that was free a moment ago, of those that the system gives to nobody by itself.

    One of the others may become the near end of somebody's connection while its server is down.
    """
    end = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    for _ in range(ATTEMPTS):
        port = random.randrange(LOWEST, end)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no port is free")

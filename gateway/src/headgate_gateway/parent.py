"""A child and its supervisor: two pipes. On one the child hears, on the other it says that it lives.

What stops a service may send its signals to every process at once, as systemd does. Then ledger and engines must
outlive the workers that drain, so children end when the supervisor says so (a byte) or has died (the pipe's end),
not by signals. Imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

BEAT_S: Final = 5.0
"""A child whose event loop comes round says so this often; the supervisor kills one that long does not."""


def ignore_signals() -> None:
    """Leave those to the supervisor that reach everybody; `follow` has what is meant for this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _hear)  # not SIG_IGN, which whatever this process starts would inherit


def _hear(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def follow(fd: int, *, told: Callable[[], object], orphaned: Callable[[], object] | None = None) -> None:
    """Call one of these on the running loop when the supervisor says that it is time to end, or has died.

    Waits on a thread: libuv would make the pipe non-blocking for whoever else reads it.

    Args:
        fd: Whose other end the supervisor has.
        told: It is time to end.
        orphaned: The supervisor has died; None: this process ends at once, whatever it is doing.
    """
    loop = asyncio.get_running_loop()

    def listen() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            while os.read(fd, 1):
                loop.call_soon_threadsafe(told)
            if orphaned is None:
                os._exit(1)
            loop.call_soon_threadsafe(orphaned)

    threading.Thread(target=listen, name="parent", daemon=True).start()


def announce(fd: int | None) -> None:
    """Say that this process serves, and from then on that its event loop comes round."""
    if fd is not None:
        os.set_blocking(fd, False)
        os.write(fd, b'{"ready": true}\n')
        _beat(asyncio.get_running_loop(), fd)


def _beat(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens, or not yet
        os.write(fd, b"\n")
    loop.call_later(BEAT_S, _beat, loop, fd)

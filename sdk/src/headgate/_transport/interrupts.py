"""Ctrl-C while native code waits. Python hears of a signal only between steps of its own.

May import nothing of ours.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Watch:
    """A thread that is told of signals by a socket, as the interpreter's `set_wakeup_fd` has it.

    A thread that waited in the main one's place would be the simple way; it cost each call a third more.
    """

    def __init__(self) -> None:
        self._far, near = socket.socketpair()
        near.setblocking(False)
        self._near = near
        self.descriptor = near.fileno()
        self.abort: Callable[[], None] | None = None
        threading.Thread(target=self._run, name="headgate-interrupts", daemon=True).start()

    def _run(self) -> None:
        while signals := self._far.recv(64):
            abort = self.abort
            # With a handler of its own a program says itself what becomes of its calls.
            ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if ours and abort is not None and signal.SIGINT in signals:
                abort()


_watch: _Watch | None = None


def _forget() -> None:
    """Signals belong to a process, and a fork of it has no watching thread."""
    global _watch
    _watch = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def interruptibly(wait: Callable[[], T], abort: Callable[[], None]) -> T:
    """Wait in native code; should Ctrl-C come meanwhile, `abort` ends the wait from another thread.

    Signals are the main thread's, and one watcher of them, an event loop maybe, keeps its place.
    """
    global _watch
    if threading.get_ident() != threading.main_thread().ident:
        return wait()
    if _watch is None:
        _watch = _Watch()
    watch = _watch
    before = signal.set_wakeup_fd(watch.descriptor, warn_on_full_buffer=False)
    if before not in (-1, watch.descriptor):  # ours stays behind where Ctrl-C came right after the line above
        signal.set_wakeup_fd(before)
        return wait()
    watch.abort = abort
    try:
        return wait()
    finally:
        watch.abort = None
        signal.set_wakeup_fd(-1)

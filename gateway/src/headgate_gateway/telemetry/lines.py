"""Writing log lines without ever waiting for whoever reads them.

A pipe whose reader sleeps would stop the process that writes to it, here a whole event loop. So a thread writes;
what it cannot write in time is dropped and counted. May import logs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from headgate_gateway.telemetry.logs import Stderr

MAX_WAITING: Final = 4 * 1024 * 1024
"""Characters that may wait for the reader."""

CLOSING_S: Final = 1.0


class LineWriter:
    """Hands lines to a thread that writes them, as many at once as there are.

    Args:
        write: Takes text of whole lines; may block.
        most: Characters that may wait; further lines are dropped.
    """

    def __init__(self, write: Callable[[str], object] | None = None, *, most: int = MAX_WAITING) -> None:
        self._write = write or Stderr().write
        self._most = most
        self._waiting = 0
        self._dropped = 0
        self._lock = threading.Lock()
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Have whole lines written soon, or dropped. Never waits."""
        with self._lock:
            if self._waiting + len(text) > self._most:
                self._dropped += text.count("\n")
                return
            self._waiting += len(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log lines", daemon=True)
                self._thread.start()
        self._queue.put(text)

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSING_S)

    def _run(self) -> None:
        while (text := self._queue.get()) is not None:
            found = [text]
            last = False
            with contextlib.suppress(Empty):
                while not last:
                    if (more := self._queue.get_nowait()) is None:
                        last = True
                    else:
                        found.append(more)
            written = "".join(found)
            self._write(written)
            with self._lock:
                self._waiting -= len(written)
                dropped, self._dropped = self._dropped, 0
            if dropped:
                self._write(f"{dropped} log lines were dropped: their reader is too slow\n")
            if last:
                return

"""Disk space kept back, so that open requests can end when the disk is full. May import disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from headgate_gateway.disk import allocate

BYTES: Final = 64 * 1024 * 1024


class Reserve:
    """A file that only takes up room.

    Args:
        path: Where.
        size: How much, bytes.
    """

    def __init__(self, path: Path, size: int = BYTES) -> None:
        self._path = path
        self._size = size

    def fill(self) -> bool:
        """Take the room up; False when there is not enough."""
        try:
            if self._path.exists() and self._path.stat().st_size == self._size:
                return True
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                allocate(fd, self._size)
            finally:
                os.close(fd)
        except OSError:
            self.free()
            return False
        return True

    def free(self) -> bool:
        """Give the room up; False when there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

"""Room on a disk, and what was written to it, that is surely there. Imports nothing of ours."""

from __future__ import annotations

import os
from pathlib import Path


def allocate(descriptor: int, size: int) -> None:
    """Give a file at least so many bytes that the disk has set aside; what is in it stays.

    Whoever maps a file with holes is killed by SIGBUS when it writes into one and the disk is full.

    Raises:
        OSError: There is not enough room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    held = os.fstat(descriptor).st_size
    if held < size:  # macOS has no such call: write the zeros
        os.pwrite(descriptor, bytes(size - held), held)


def sync(path: Path) -> None:
    """Have a file, or what a folder says of its files, on disk when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

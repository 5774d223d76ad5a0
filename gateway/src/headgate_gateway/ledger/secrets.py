"""What is secret on this machine: the pepper and the admin key; made at first start. May import domain, settings.

Both lie outside the store, mode 0600: whoever has only the store can neither test guessed keys against it nor
recompute its chain.
"""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

from headgate_gateway import settings as config
from headgate_gateway.domain.keys import generate_key


def ensure(settings: config.Settings) -> None:
    """Make the data folder's own pepper and admin key where they are missing and needed."""
    layout = settings.layout
    layout.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if settings.server.pepper is None:
        _make(layout.pepper, secrets.token_hex(32))
    if config.admin_key(layout) is None:
        _make(layout.admin_key, generate_key(random.SystemRandom()))


def _make(path: Path, text: str) -> None:
    """Write a file that only this user reads; the first of several makers wins."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())

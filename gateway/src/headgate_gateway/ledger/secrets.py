"""What is secret on this machine: the pepper and the admin key; made at first start. May import domain, settings.

Both lie outside the store, mode 0600: whoever has only the store can neither test guessed keys against it nor
recompute its chain.
"""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

from headgate_gateway.domain.keys import generate_key
from headgate_gateway.layout import Layout


def read_or_make(path: Path, make: str) -> str:
    """The text of a file, or `make` written to it when there is none; the first of several makers wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path.read_text(encoding="utf-8").strip()
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(make + "\n")
        file.flush()
        os.fsync(file.fileno())
    return make


def pepper(layout: Layout, given: str | None = None) -> bytes:
    """The pepper: what the config gives, else the data folder's own."""
    text = given if given is not None else read_or_make(layout.pepper, secrets.token_hex(32))
    if len(text.strip()) < 16:
        raise ValueError("the pepper must have at least 16 characters")
    return text.strip().encode()


def admin_key(layout: Layout, given: str | None = None) -> str:
    """The admin key: what the environment gives, else the data folder's own."""
    return given or read_or_make(layout.admin_key, generate_key(random.SystemRandom()))

"""The headgate command.

May import everything; heavy imports happen inside the commands, so that `headgate --help` stays quick with any
number of plugins installed.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line."""
    _open_missing()
    from headgate_gateway.cli.application import application

    application()


def _open_missing() -> None:
    """Whoever starts a daemon may close its streams: what is opened next would be taken for them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


__all__ = ["main"]

"""The headgate command.

May import everything; heavy imports happen inside the commands, so that `headgate --help` stays quick with any
number of plugins installed.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from headgate_gateway.cli.application import application

    application()


__all__ = ["main"]

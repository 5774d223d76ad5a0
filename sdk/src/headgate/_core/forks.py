"""What a forked child must not take over from its parent: connections, and locks that nobody will let go of.

A child that wrote to its parent's connections would read its parent's answers. May import nothing of ours.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Heir(Protocol):
    """What a forked child finds, and has to set right before it is used."""

    def forked(self) -> None:
        """This process is the child, and has one thread: give up what is the parent's."""
        ...


_heirs: WeakSet[Heir] = WeakSet()


def inherited(heir: Heir) -> None:
    """Have `heir.forked()` called in every process that is forked from this one."""
    _heirs.add(heir)


def forked() -> None:
    """Tell all of them."""
    for heir in list(_heirs):
        heir.forked()


if hasattr(os, "register_at_fork"):  # pragma: no branch - where processes do not fork, there is nothing to do
    os.register_at_fork(after_in_child=forked)

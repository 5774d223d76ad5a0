"""Cursors: how far each consumer of usage records has come. May import wire.

A cursor is not history: no chain covers it, and it moves outside of batches, so that no commit waits for one. It
only goes forward, but for an operator's command, which the audit log keeps. `epoch` says when it was last begun
or set by hand: who was handing records over meanwhile cannot undo that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, LiteralString

from headgate_gateway.ledger import wire

COLUMNS: Final = "consumer, position, error"
"""What is shown of one."""

_BEGIN: Final = (
    "INSERT INTO cursors (consumer, position, epoch, error) VALUES ({0}, {0}, {0}, '') "
    "ON CONFLICT (consumer) DO NOTHING"
)
_ADVANCE: Final = (
    "UPDATE cursors SET position = {0}, error = {0} WHERE consumer = {0} AND epoch = {0} AND position <= {0}"
)
_FIND: Final = "SELECT position, epoch FROM cursors WHERE consumer = {0}"
_MOVE: Final = (
    "INSERT INTO cursors (consumer, position, epoch, error) VALUES ({0}, {0}, {0}, '') "
    "ON CONFLICT (consumer) DO UPDATE SET position = excluded.position, epoch = excluded.epoch, error = ''"
)
_REMOVE: Final = "DELETE FROM cursors WHERE consumer = {0}"

Statement = tuple[LiteralString, tuple[Any, ...]]


def advance(
    execute: Callable[[LiteralString, tuple[Any, ...]], Any], mark: LiteralString, op: wire.Advance, now_us: int
) -> wire.Cursor:
    """Begin or advance a cursor, if nobody else has set it; returns where it is now.

    Args:
        execute: Runs a statement in a transaction of its own.
        mark: How the driver marks a value.
        op: What is asked.
        now_us: The time.
    """
    if op.epoch is None:
        execute(_BEGIN.format(mark), (op.consumer, op.position, now_us))
    else:
        execute(_ADVANCE.format(mark), (op.position, op.error, op.consumer, op.epoch, op.position))
    position, epoch = execute(_FIND.format(mark), (op.consumer,)).fetchone() or (None, 0)
    return wire.Cursor(op.n, position, epoch)


def move(mark: LiteralString, consumer: str, position: int | None, now_us: int) -> Statement:
    """What sets a cursor by hand, or (`position` None) removes it."""
    if position is None:
        return _REMOVE.format(mark), (consumer,)
    return _MOVE.format(mark), (consumer, position, now_us)

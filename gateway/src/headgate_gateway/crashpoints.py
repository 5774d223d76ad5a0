"""Named places where a process can be made to die, to prove that dying there loses and doubles nothing.

`HEADGATE_CRASH_AT=POINT:N` makes every process that passes POINT kill itself, with SIGKILL, the N-th time. It is
read once, when a process starts; without it a point is one comparison. May import the standard library only.
"""

from __future__ import annotations

import os
import signal
from typing import Final, Literal, get_args

Point = Literal[
    "ledger.before_commit",
    "ledger.in_transaction",
    "ledger.after_commit",
    "ledger.after_reply",
    "ledger.after_welcome",
    "ledger.in_recovery",
    "worker.before_admit",
    "worker.after_admit",
    "worker.after_dispatched",
    "worker.first_event",
    "worker.mid_stream",
    "worker.before_settle",
    "worker.after_settle",
    "worker.after_last_bytes",
]
"""Where: the ledger around its transaction, its replies and its recovery; a worker along a request's way."""

POINTS: Final[tuple[Point, ...]] = get_args(Point)

_armed: Point | None = None
_left = 0


def arm(order: str | None) -> None:
    """Take the order that this process was started with.

    Args:
        order: `POINT:N`, or None for none.

    Raises:
        ValueError: It names no point, or N is not a positive number.
    """
    global _armed, _left
    if not order:
        _armed, _left = None, 0
        return
    name, _, number = order.partition(":")
    point: Point | None = next((known for known in POINTS if known == name), None)
    if point is None or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"expected POINT:N with N from 1 and POINT one of {', '.join(POINTS)}, got {order!r}")
    _armed, _left = point, int(number)


def reach(point: Point) -> None:
    """Die here, if this is the point and it is time."""
    if _armed is not None and _armed == point:
        _die_in_time()


def _die_in_time() -> None:
    global _left
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)

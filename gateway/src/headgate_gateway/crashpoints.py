"""Named places where a process can be made to die, to prove that dying there loses and doubles nothing.

`HEADGATE_CRASH_AT=POINT:N` makes every process that passes POINT kill itself, with SIGKILL, the N-th time. What
carries that out is `crash_orders`, which a checkout has and a released wheel has not: there the variable says
nothing. It is read once, when a process starts; without it a point is one comparison. May import crash_orders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, get_args

RequestPoint = Literal[
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

ArchivePoint = Literal["archive.before_whole", "archive.whole", "archive.kept", "ledger.in_sweep", "ledger.swept"]
"""Where: who archives before a file is whole, then and when the ledger noted it; the ledger as rows leave."""

Point = RequestPoint | ArchivePoint

POINTS: Final[tuple[RequestPoint, ...]] = get_args(RequestPoint)
"""Those that requests pass."""

ALL: Final[tuple[Point, ...]] = (*POINTS, *get_args(ArchivePoint))

_armed: Point | None = None
_pass: Callable[[], None]


def arm(order: str | None) -> None:
    """Take the order that this process was started with; without what carries it out there is none.

    Args:
        order: `POINT:N`, or None for none.

    Raises:
        ValueError: It names no point, or N is not a positive number.
    """
    global _armed, _pass
    _armed = None
    if not order:
        return
    try:
        from headgate_gateway import crash_orders
    except ImportError:
        return
    _armed, _pass = crash_orders.taken(order)


def reach(point: Point) -> None:
    """Die here, if this is the point and it is time."""
    if _armed is not None and _armed == point:
        _pass()

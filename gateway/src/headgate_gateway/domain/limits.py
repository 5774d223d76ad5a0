"""Rate limits: GCRA in integers, with a refund that never credits time twice. Imports nothing of ours.

The state of a limit is one number, its theoretical arrival time (TAT), kept in microseconds times the limit: one
unit then costs exactly the window's length, and nothing is ever rounded.
"""

from __future__ import annotations

from typing import Final

WINDOW_US: Final = 60_000_000
"""Limits are per minute."""


def take(tat: int, limit: int, units: int, now_us: int) -> tuple[int, int | None]:
    """Try to take units from a limit whose burst is the whole limit.

    Args:
        tat: The state, scaled by `limit`.
        limit: Units per minute.
        units: How many are asked for.
        now_us: The time.

    Returns:
        The new TAT and None where they fit; else the old TAT and microseconds until the same request would fit
        (-1 when it never does, being larger than the limit).
    """
    if units > limit:
        return tat, -1
    now = now_us * limit
    after = max(now, tat) + units * WINDOW_US
    over = after - now - limit * WINDOW_US
    if over > 0:
        return tat, -(-over // limit)
    return after, None


def refund(tat: int, left_tat: int, limit: int, units: int, now_us: int) -> int:
    """The TAT after units that were taken but not used are given back.

    Args:
        tat: The state now.
        left_tat: The TAT that the taking left. Time before now has already been credited by passing, so no
            more than `left_tat - now` can still be owed.
        limit: Units per minute, the same as when they were taken.
        units: How many were not used.
        now_us: The time.
    """
    owed = min(units * WINDOW_US, left_tat - now_us * limit)
    return tat - owed if owed > 0 else tat


def remaining(tat: int, limit: int, now_us: int) -> int:
    """Units that could be taken at once."""
    room = limit * WINDOW_US - max(0, tat - now_us * limit)
    return max(0, room // WINDOW_US)


def reset_us(tat: int, limit: int, now_us: int) -> int:
    """Microseconds until the limit is whole again."""
    return -(-max(0, tat - now_us * limit) // limit)


def rescale(tat: int, old_limit: int, new_limit: int) -> int:
    """A TAT under another limit: the same moment, in the new scale, rounded up."""
    return -(-tat * new_limit // old_limit)

"""Rate limits: GCRA in integers, with a refund that never credits time twice. Imports nothing of ours.

The state of a limit is its theoretical arrival time (TAT), kept in microseconds times the limit: one unit then
costs exactly the window's length, and nothing is ever rounded.

What a request did not use is given back as if it had never been taken. The TAT is ahead of the time by what is
queued, so this is a question of queues: without the work of one that came earlier there is less by so much, but
never by more than there was at its lowest since (Lindley's recursion), because a time at which nothing was queued
has passed for good. So a limit remembers its *lows*: how far its TAT was ahead when others took from it, as far
as that was less than at any later time.
"""

from __future__ import annotations

from typing import Final

WINDOW_US: Final = 60_000_000
"""Limits are per minute."""

MOST_LOWS: Final = 32
"""Lows that are remembered. Of more, each two become one, which gives back less, never more."""

Low = tuple[int, int]
"""When units were taken, in microseconds, and how far the TAT was ahead of that just before."""


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


def note_low(lows: list[Low], tat: int, limit: int, now_us: int) -> None:
    """Note how low a limit stands, before units are taken from it.

    Args:
        lows: The limit's, oldest and lowest first.
        tat: The state before.
        limit: Units per minute.
        now_us: The time, never before that of the last low.
    """
    ahead = max(0, tat - now_us * limit)
    while lows and lows[-1][1] >= ahead:
        lows.pop()
    if lows and lows[-1][0] == now_us:
        return  # at one moment the first that takes meets the lowest
    lows.append((now_us, ahead))
    if len(lows) > MOST_LOWS:
        lows[:-1] = [(later, low) for (_, low), (later, _) in zip(lows[:-1:2], lows[1:-1:2], strict=True)]


def refund(tat: int, lows: list[Low], limit: int, units: int, taken_us: int, now_us: int) -> int:
    """The TAT after units that were taken but not used are given back; lows since then sink with it.

    Args:
        tat: The state now.
        lows: The limit's, oldest and lowest first.
        limit: Units per minute, the same as when they were taken.
        units: How many were not used.
        taken_us: When they were taken.
        now_us: The time.
    """
    unused = units * WINDOW_US
    since = next((place for place, (at_us, _) in enumerate(lows) if at_us > taken_us), None)
    if since is not None:
        unused = min(unused, lows[since][1])
        sunk = [(at_us, low - unused) for at_us, low in lows[since:]]
        lows[:] = [*(low for low in lows[:since] if low[1] < sunk[0][1]), *sunk]
    return tat - max(0, min(unused, tat - now_us * limit))


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

"""Carries out orders to die at a crash point. No released wheel has this module. May import crashpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from headgate_gateway.crashpoints import ALL, Point


def taken(order: str) -> tuple[Point, Callable[[], None]]:
    """Where to die, and what is to be called at each passing: it kills this process when it is time.

    Args:
        order: `POINT:N`.

    Raises:
        ValueError: It names no point, or N is not a positive number.
    """
    name, _, number = order.partition(":")
    point: Point | None = next((known for known in ALL if known == name), None)
    if point is None or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"expected POINT:N with N from 1 and POINT one of {', '.join(ALL)}, got {order!r}")
    left = int(number)

    def passing() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return point, passing

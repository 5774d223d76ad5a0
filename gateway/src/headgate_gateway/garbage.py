"""How long-lived processes collect garbage. Imports nothing of ours."""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (50_000, 20, 50)
"""Allocations between collections of the youngest generation, and how many of those to one of the older ones."""


def settle() -> None:
    """Take what was made at start out of the collector's sight, and let it look less often.

    With Python's own thresholds it walks the young objects every few requests and everything there is, modules
    and all, again and again: a seventh of a worker's time. Requests leave hardly any cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)

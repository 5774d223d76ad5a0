"""File descriptors: how many a process may have. Imports nothing of ours."""

from __future__ import annotations

import contextlib
import resource


def allow(wanted: int) -> int:
    """Let this process have as many as it wants or may; returns how many it has.

    A shell gives 1,024, which is kept for programs that cannot count further.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with contextlib.suppress(ValueError, OSError):  # a system may have a ceiling of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft

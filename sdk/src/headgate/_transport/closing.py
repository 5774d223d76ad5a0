"""What every transport says once it was closed. May import errors."""

from __future__ import annotations

from headgate.errors import ConnectionFailed


def refuse_closed(*, closed: bool) -> None:
    """Refuse at once what a closed transport is asked: the libraries below go on for a while.

    Raises:
        ConnectionFailed: It is closed.
    """
    if closed:
        raise ConnectionFailed("the client is closed", phase="closed")

"""Cross-origin requests: which web pages may call this gateway from a browser (`server.cors_origins`).

Done at the edge, so that errors can be read by those pages too. May import headers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from litestar.types import HTTPScope, Scope

from headgate_gateway.http import headers
from headgate_gateway.http.headers import Pairs

ANY: Final = "*"
_MAX_AGE_S: Final = 600


class Cors:
    """Decides by the `Origin` header.

    Args:
        origins: Allowed ones such as `https://app.example.org`; `*` allows all. None of them by default.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def allowed(self, scope: Scope) -> Pairs:
        """Headers for the answer; none where the origin is not allowed, or the request is not cross-origin."""
        if not self._origins:
            return []
        origin = headers.find(scope, headers.ORIGIN)
        if origin is None or not (ANY in self._origins or origin.decode("latin-1") in self._origins):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", headers.EXPOSED),
            (b"vary", b"Origin"),
        ]

    def preflight(self, scope: HTTPScope) -> Pairs | None:
        """Headers of the answer to a preflight request; None when it is no such request."""
        if scope["method"] != "OPTIONS" or headers.find(scope, headers.REQUEST_METHOD) is None:
            return None
        asked = headers.find(scope, headers.REQUEST_HEADERS) or b""
        return [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", asked),
            (b"access-control-max-age", b"%d" % _MAX_AGE_S),
        ]

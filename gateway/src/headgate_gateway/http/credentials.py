"""Who asks: one code path for every place where clients put their key.

May import headers, problems, rooms.
"""

from __future__ import annotations

from typing import Final, Literal

from litestar.types import Scope

from headgate_gateway.domain.admission import Principal
from headgate_gateway.http import headers
from headgate_gateway.http.edge import facts_of
from headgate_gateway.http.problems import Problem, of_refusal
from headgate_gateway.http.rooms import Rooms

MAX_KEY: Final = 512
"""Characters. Longer ones are not looked up."""

_BEARER: Final = b"bearer "


def presented(scope: Scope) -> str | None:
    """The key that a request carries: `Authorization: Bearer`, else the first of the other headers."""
    authorization = headers.find(scope, headers.AUTHORIZATION)
    if authorization is not None and authorization[:7].lower() == _BEARER:
        return authorization[7:].strip().decode("latin-1")
    other = next((value for name, value in scope["headers"] if name in headers.KEYS), None)
    return other.strip().decode("latin-1") if other is not None else None


async def authenticate(rooms: Rooms, scope: Scope) -> Principal:
    """Who the presented key speaks for.

    Raises:
        Problem: There is no key, it is unknown or revoked, or the ledger cannot say.
    """
    key = presented(scope)
    if not key or len(key) > MAX_KEY:
        raise Problem(
            "invalid_api_key",
            "no API key: send Authorization: Bearer KEY, or x-api-key, api-key or x-goog-api-key",
        )
    answer = await rooms.ledger.authenticate(key)
    if not isinstance(answer, Principal):
        raise of_refusal(answer)
    facts_of(scope).key = answer.key_id
    return answer


async def authorize(rooms: Rooms, scope: Scope, right: Literal["usage", "admin", "inference"]) -> Principal:
    """Who asks, if the key has the scope `right`; the admin key has every one.

    Raises:
        Problem: As for `authenticate`, or the key lacks the scope.
    """
    principal = await authenticate(rooms, scope)
    if not principal.admin and right not in principal.scopes:
        raise Problem("permission_denied", f"this key's scopes lack {right!r}")
    return principal

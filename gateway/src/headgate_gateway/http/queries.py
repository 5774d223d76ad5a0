"""Reading query strings: pages, filters and times, with errors that name the parameter.

May import problems.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from litestar.types import Scope

from headgate_gateway.http.problems import Problem

MAX_PAGE: Final = 1_000
_DEFAULT_PAGE: Final = 100
_CURSOR: Final = re.compile(r"[a-z]{3}_[0-9a-z]{26}")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list is asked for: `limit` rows after `after`, those that match `filters`."""

    after: str = ""
    limit: int = _DEFAULT_PAGE
    filters: dict[str, str] = {}


def read_query(scope: Scope, *names: str) -> dict[str, str]:
    """The query parameters.

    Args:
        scope: ASGI.
        names: Those that the route knows.

    Raises:
        Problem: There is one that it does not know.
    """
    found: dict[str, str] = {}
    for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name not in names:
            known = ", ".join(names) or "none"
            raise Problem("invalid_request", f"{name}: unknown parameter; known are {known}", path=name)
        if name in found:
            raise Problem(
                "invalid_request", f"{name}: expected once, or with commas between its values", path=name
            )
        found[name] = value
    return found


def read_page(scope: Scope, *filters: str) -> Page:
    """A page of a list, from `after`, `limit` and the route's own filters."""
    query = read_query(scope, "after", "limit", *filters)
    limit = query.pop("limit", str(_DEFAULT_PAGE))
    if not _is_number(limit) or not 1 <= int(limit[:9]) <= MAX_PAGE:
        raise Problem("invalid_request", f"limit: expected a number from 1 to {MAX_PAGE}", path="limit")
    after = query.pop("after", "")
    if after and _CURSOR.fullmatch(after) is None:
        raise Problem("invalid_request", "after: expected the `after` of the page before", path="after")
    return Page(after=after, limit=int(limit), filters=query)


def read_time(query: dict[str, str], name: str) -> int | None:
    """A moment in microseconds UTC, given as RFC 3339 or as Unix seconds.

    Raises:
        Problem: It is neither.
    """
    text = query.get(name)
    if text is None:
        return None
    if _is_number(text) and len(text) <= 11:
        return int(text) * 1_000_000
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise Problem(
            "invalid_request", f"{name}: expected a time such as 2026-01-31T00:00:00Z", path=name
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // dt.timedelta(microseconds=1)


def _is_number(text: str) -> bool:
    """Whether it is ASCII digits; `str.isdigit` alone also takes a superscript, which `int` does not."""
    return text.isascii() and text.isdigit()

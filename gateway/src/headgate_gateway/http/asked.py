"""What a call's headers ask beside its body: an idempotency claim, tags, a deadline, the number of the attempt.

May import headers and problems.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from headgate_dialects.fields import MAX_TAG_LENGTH, MAX_TAGS
from litestar.types import Scope

from headgate_gateway.domain.admission import Claim
from headgate_gateway.http import headers
from headgate_gateway.http.problems import Problem

MAX_IDEMPOTENCY_KEY: Final = 255
MAX_DIGITS: Final = 12

ASKING: Final = frozenset({headers.IDEMPOTENCY_KEY, headers.TAGS, headers.DEADLINE, headers.ATTEMPT})
"""What is read here: of a call that has none of them, nothing need be."""

GRACE_MS: Final = 100
"""A client's own clock may end its call first, so that it says so in its own words; ours stops what is left."""


def read_claim(scope: Scope, document: dict[str, Any]) -> Claim | None:
    """The claim of an `Idempotency-Key`, with the fingerprint of the route and the body that it came with.

    Raises:
        Problem: The key is empty, too long or not ASCII.
    """
    value = headers.find(scope, headers.IDEMPOTENCY_KEY)
    if value is None:
        return None
    if not 0 < len(value) <= MAX_IDEMPOTENCY_KEY or not value.isascii():
        raise _wrong("Idempotency-Key", f"expected 1 to {MAX_IDEMPOTENCY_KEY} ASCII characters")
    digest = sha256(scope["path"].encode())
    digest.update(b"\0")
    digest.update(msgspec.json.encode(document, order="sorted"))
    return Claim(key=value.decode("ascii"), fingerprint=digest.digest())


def read_tags(scope: Scope, own: dict[str, str]) -> dict[str, str]:
    """The tags of a body's `metadata`, and those of the header `headgate-tags: team=web, note=a%2C b`.

    Names and values are percent-encoded UTF-8 where they hold a comma, an equals sign or what a header cannot
    carry. The header wins where both name a tag.

    Raises:
        Problem: A pair that is none, a name that is there twice, or more or longer tags than are kept.
    """
    value = headers.find(scope, headers.TAGS)
    if value is None:
        return own
    found: dict[str, str] = {}
    for item in value.split(b",") if value.strip() else ():
        name, sign, text = item.partition(b"=")
        tag = _decoded(name)
        if not sign or not tag:
            raise _wrong("headgate-tags", "expected pairs such as team=web, with commas between them")
        if tag in found:
            raise _wrong("headgate-tags", f"{tag[:64]!r} is there twice")
        found[tag] = _decoded(text)
        if max(len(tag), len(found[tag])) > MAX_TAG_LENGTH:
            raise _wrong("headgate-tags", f"expected names and values of at most {MAX_TAG_LENGTH} characters")
    tags = {**own, **found}
    if len(tags) > MAX_TAGS:
        raise _wrong(
            "headgate-tags", f"expected at most {MAX_TAGS} tags together with `metadata`, got {len(tags)}"
        )
    return tags


def read_deadline(scope: Scope, waited_s: float) -> int | None:
    """Milliseconds that the caller still waits, from `headgate-deadline-ms`; None where it does not say.

    Args:
        scope: ASGI.
        waited_s: How long it has waited already, since its request began to come in.

    Raises:
        Problem: It is no number, or has passed.
    """
    asked = _number(scope, headers.DEADLINE, "headgate-deadline-ms")
    if asked is None:
        return None
    left = asked - round(waited_s * 1000)
    if left <= 0:
        raise Problem("upstream_timeout", f"the caller's deadline of {asked} ms passed before anything was run")
    return left + GRACE_MS


def read_attempt(scope: Scope) -> int:
    """Which try of one call this is, as its client counts: 1 for the first.

    Raises:
        Problem: It is no number.
    """
    return _number(scope, headers.ATTEMPT, "headgate-attempt") or 1


def _number(scope: Scope, name: bytes, shown: str) -> int | None:
    value = headers.find(scope, name)
    if value is None:
        return None
    if not value.isdigit() or len(value) > MAX_DIGITS or int(value) == 0:
        raise _wrong(shown, f"expected a number from 1 on, of at most {MAX_DIGITS} digits")
    return int(value)


def _decoded(text: bytes) -> str:
    try:
        decoded = unquote_to_bytes(text.strip()).decode()
    except UnicodeDecodeError:
        raise _wrong("headgate-tags", "expected percent-encoded UTF-8") from None
    if "\0" in decoded:
        raise _wrong("headgate-tags", "expected texts without NUL")
    return decoded


def _wrong(header: str, expected: str) -> Problem:
    return Problem("invalid_request", f"{header}: {expected}", path=header)

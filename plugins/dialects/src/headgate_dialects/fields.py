"""Reading documents strictly: what a client sent becomes a typed struct, or an error that names the field.

May import the plugin API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from headgate_plugin_api import InvalidRequest, JsonValue, UpstreamFailed

T = TypeVar("T")

MAX_LIMIT: Final = 2**31 - 1
"""The largest output limit or count that a client may name; more is a mistake, not a wish."""

MAX_TAGS: Final = 16
MAX_TAG_LENGTH: Final = 512

_AT = re.compile(r"^(?P<what>.*) - at `(?:key in )?\$?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")


Usual: TypeAlias = Mapping[str, Sequence[JsonValue]]


def read_request(document: Any, shape: type[T]) -> T:
    """Read a client's decoded JSON as `shape`.

    Raises:
        InvalidRequest: A field is missing or of the wrong type; `path` names it (`messages[1].content`).
    """
    try:
        return msgspec.convert(document, shape)
    except msgspec.ValidationError as error:
        what, path = locate(str(error))
        raise InvalidRequest(f"{path}: {what}" if path else what, path=path or None) from None


def read_answer(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Read JSON of an upstream.

    Raises:
        UpstreamFailed: It is not JSON, or not of the dialect's form.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UpstreamFailed(f"the upstream's answer is malformed: {error}") from None


def known_fields(shape: type[Any], *harmless: str) -> frozenset[str]:
    """The fields of a dialect's request, and those without which an answer would be no other.

    Args:
        shape: The request as it is read.
        harmless: Further names: bookkeeping and hints that a model is free to ignore.
    """
    return frozenset({*(field.encode_name for field in msgspec.structs.fields(shape)), *harmless})


def beyond(document: Mapping[str, Any], known: frozenset[str], usual: Usual | None = None) -> tuple[str, ...]:
    """The fields that ask for something else: neither known nor empty, nor asking for what is done anyway.

    Args:
        document: The client's.
        known: Names that say something here.
        usual: By further names, the values that mean no more than leaving them out.
    """
    rest = document.keys() - known
    if not rest:
        return ()
    return tuple(sorted(name for name in rest if not _asks_nothing(document[name], (usual or {}).get(name, ()))))


def _asks_nothing(value: JsonValue, usual: Sequence[JsonValue]) -> bool:
    return value is None or value is False or value in ("", [], {}) or value in usual


def locate(error: str) -> tuple[str, str]:
    """Split msgspec's sentence into what is wrong and the path of where, in the client's terms."""
    match = _AT.match(error)
    what, path = (match["what"], match["path"].removeprefix(".")) if match else (error, "")
    if missing := _MISSING.match(what):
        path = f"{path}.{missing['field']}" if path else missing["field"]
        return "is required", path
    return what[:1].lower() + what[1:], path


def read_tags(metadata: dict[str, Any] | None) -> dict[str, str]:
    """The tags of a request from its `metadata`: at most 16 pairs of short strings.

    Raises:
        InvalidRequest: Too many pairs, or a name or value that is no short string, or has a NUL in it.
    """
    if not metadata:
        return {}
    if len(metadata) > MAX_TAGS:
        raise InvalidRequest(f"metadata: expected at most {MAX_TAGS} pairs, got {len(metadata)}", path="metadata")
    for name, value in metadata.items():
        if not isinstance(value, str) or len(value) > MAX_TAG_LENGTH or len(name) > MAX_TAG_LENGTH:
            path = f"metadata.{name[:64]}"
            raise InvalidRequest(f"{path}: expected a string of at most {MAX_TAG_LENGTH} characters", path=path)
        if "\0" in name or "\0" in value:
            path = f"metadata.{name[:64]}"
            raise InvalidRequest(f"{path}: expected a text without NUL", path=path)
    return metadata

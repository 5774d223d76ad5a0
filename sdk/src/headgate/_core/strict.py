"""A JSON schema as strict providers take it: every object closed, every property required. Pure.

OpenAI refuses `strict` schemas that leave anything open. Imports the standard library only.
"""

from __future__ import annotations

from typing import Any, cast

_MAPS = frozenset({"properties", "$defs"})
_DATA = frozenset({"const", "enum", "examples"})


class _Open(Exception):
    """An object takes keys of any name."""


def strict_schema(schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The schema in that form and True; as it is and False where it takes keys of any name."""
    try:
        return _closed(schema), True
    except _Open:
        return schema, False


def _closed(node: Any) -> Any:
    if isinstance(node, list | tuple):
        return [_closed(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    given = cast("dict[str, Any]", node)
    if "$ref" in given:
        return {"$ref": given["$ref"]}  # nothing may stand beside it
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name in _MAPS:
            made[name] = {key: _closed(part) for key, part in value.items()}
        elif name != "default":
            made[name] = value if name in _DATA else _closed(value)
    if made.get("type") == "object":
        if "properties" not in made or made.get("additionalProperties"):
            raise _Open
        made.update(additionalProperties=False, required=list(made["properties"]))
    return made

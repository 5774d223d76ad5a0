"""Columns of values as PostgreSQL array literals, built by joins. Imports nothing of ours.

A driver that adapts each element on its own costs more than the statement it is for.
"""

from __future__ import annotations

from collections.abc import Iterable


def integers(column: Iterable[int | bool | None]) -> str:
    """For `::bigint[]` and `::integer[]`."""
    return "{" + ",".join(["NULL" if value is None else str(int(value)) for value in column]) + "}"


def texts(column: Iterable[str | None]) -> str:
    r"""For `::text[]`; quotes and backslashes are escaped."""
    return "{" + ",".join(["NULL" if value is None else quoted(value) for value in column]) + "}"


def blobs(column: Iterable[bytes]) -> str:
    """For `::bytea[]`."""
    return "{" + ",".join(['"\\\\x' + value.hex() + '"' for value in column]) + "}"


def quoted(value: str) -> str:
    """One element of a text array."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

"""`docs/http.md` names every route, error code and header."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from headgate_gateway.http import headers
from headgate_gateway.http.problems import TABLE
from headgate_gateway.http.schema import openapi_bytes

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


@pytest.mark.parametrize("code", TABLE)
def test_every_code_is_documented(code: str) -> None:
    assert f"`{code}`" in PAGE


@pytest.mark.parametrize("name", headers.EXPOSED.decode().split(", "))
def test_every_header_is_documented(name: str) -> None:
    assert name in PAGE.lower()


def test_every_route_is_documented() -> None:
    for path in msgspec.json.decode(openapi_bytes())["paths"]:
        parts = [part for part in path.split("/") if part and not part.startswith("{")]
        assert all(part in PAGE for part in parts), path


def test_times_of_commands_are_described_as_they_are_taken() -> None:
    schemas = msgspec.json.decode(openapi_bytes())["components"]["schemas"]
    for shape, field in (
        ("CreateKey", "expires_at"),
        ("SetPrice", "effective_from"),
        ("GrantCredit", "expires_at"),
    ):
        assert schemas[shape]["properties"][field]["anyOf"][0]["type"] == ["integer", "string"]

"""Functions as tools: what the model is told, and what becomes of the arguments that it makes up."""

from __future__ import annotations

from typing import Annotated

import pytest
from headgate import errors, tool
from pydantic import Field

from .conftest import HELLO, Driver


@tool
def weather(city: Annotated[str, Field(description="Where")], days: int = 1) -> str:
    """The weather in a city."""
    if days > 9:
        raise ValueError("nobody knows")
    return f"{city}: {days} days of sun"


def test_a_tool_describes_itself() -> None:
    function = weather.param["function"]
    assert (function["name"], function["description"]) == ("weather", "The weather in a city.")
    schema = function["parameters"]
    assert schema["required"] == ["city"]
    assert schema["properties"]["city"]["description"] == "Where"
    assert schema["properties"]["days"]["type"] == "integer"


async def test_a_tool_goes_along(drive: Driver) -> None:
    create = drive.client().chat.completions.create
    await drive.do(create, model="echo", messages=HELLO, tools=[weather.param])
    assert drive.gateway.seen[0].json()["tools"] == [weather.param]


def test_a_tool_runs_what_the_model_wants() -> None:
    assert weather("Vienna") == "Vienna: 1 days of sun"
    assert weather.run('{"city": "Vienna", "days": 2}') == "Vienna: 2 days of sun"
    # What the function raises is its own.
    with pytest.raises(ValueError, match="nobody knows"):
        weather.run('{"city": "Vienna", "days": 10}')


@pytest.mark.parametrize(
    ("arguments", "path"),
    [("", "city"), ("[1]", ""), ("{", ""), ('{"city": 1}', "city"), ('{"city": "a", "x": 1}', "x")],
)
def test_arguments_that_do_not_fit(arguments: str, path: str) -> None:
    with pytest.raises(errors.ResponseShapeError) as caught:
        weather.run(arguments)
    assert caught.value.path == path

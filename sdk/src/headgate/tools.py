"""Functions of yours as tools of a model. Imports pydantic and the errors.

@tool
def weather(city: str, days: int = 1) -> str:
'''The weather in a city.'''

answer = client.chat.completions.create(model=..., messages=[...], tools=[weather.param])
for call in answer.choices[0].message.tool_calls or []:
print(weather.run(call.function.arguments))
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from headgate._core.answers import shape_error
from headgate.errors import ResponseShapeError
from headgate.types.chat import ToolParam

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class Tool(Generic[P, ResultT]):
    """A function that a model may call; call it yourself as before.

    Attributes:
        name: The function's name.
        param: What goes into `tools=[...]`: name, docstring, and a JSON schema of the parameters.
    """

    def __init__(self, function: Callable[P, ResultT]) -> None:
        @functools.wraps(function)
        def taken(*args: Any, **kwargs: Any) -> Any:
            return args, kwargs

        self._function = function
        # The function itself stays out of the check: what it raises is its own.
        self._arguments: TypeAdapter[Any] = TypeAdapter(cast("Any", taken))
        self.name = function.__name__
        self.param: ToolParam = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": inspect.getdoc(function) or "",
                "parameters": self._arguments.json_schema(),
            },
        }

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        """Call the function."""
        return self._function(*args, **kwargs)

    def run(self, arguments: str) -> ResultT:
        """Call the function with the arguments of a model's tool call, checked against its parameters.

        Raises:
            ResponseShapeError: They do not fit; the path names which.
        """
        body = arguments.encode()
        try:
            given: object = json.loads(arguments or "{}")
            if not isinstance(given, dict):
                raise ValueError("the arguments are no object")  # noqa: TRY004  one kind for all that is no JSON object
        except ValueError as error:
            raise ResponseShapeError(f"{self.name}: {error}", path="", body=body) from error
        try:
            args, kwargs = self._arguments.validate_python(ArgsKwargs((), cast("dict[str, Any]", given)))
        except ValidationError as error:
            raise shape_error(error, body) from error
        return cast("Callable[..., ResultT]", self._function)(*args, **kwargs)


def tool(function: Callable[P, ResultT]) -> Tool[P, ResultT]:
    """Make a tool of a function; its parameters have types, and `Field(description=...)` where that helps."""
    return Tool(function)

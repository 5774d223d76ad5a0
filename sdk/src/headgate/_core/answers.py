"""Bytes of an answer into its type, checked; what is wrong is named by its path. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from headgate._core.money import Cost
from headgate._core.request import Call
from headgate._transport.types import Received
from headgate.errors import ResponseShapeError
from headgate.types.shared import Answer, Raw

ModelT = TypeVar("ModelT", bound=BaseModel)


def checked(reader: Callable[[Received, Call], ModelT], received: Received, call: Call) -> ModelT:
    """An answer through its reader. One that cannot be read was made and billed all the same.

    Raises:
        ResponseShapeError: It is not what the contract says; it knows the call and what it cost.
    """
    try:
        return reader(received, call)
    except ResponseShapeError as error:
        tell(error, received, call)
        raise


def tell(error: ResponseShapeError, received: Received, call: Call) -> None:
    """Give an error the facts of the answer that it is about."""
    headers = received.headers
    error.attempts = tuple(call.attempts)
    error.request_id = headers.get("x-request-id")
    error.cost = Cost.parse(headers.get("headgate-cost"), price=headers.get("headgate-price"))


def read(kind: type[ModelT], received: Received, call: Call) -> ModelT:
    """An answer as its type.

    Raises:
        ResponseShapeError: It is not what the contract says.
    """
    try:
        answer = kind.model_validate_json(received.body)
    except ValidationError as error:
        raise shape_error(error, received.body) from error
    return dress(answer, received, call)


def dress(answer: ModelT, received: Received, call: Call) -> ModelT:
    """Give an answer the facts of its headers and of its call."""
    if isinstance(answer, Answer):
        answer.attach(Raw(received.status, received.headers, received.body, call.attempts, call.key))
    return answer


def shape_error(error: ValidationError, body: bytes, *, note: str = "") -> ResponseShapeError:
    """Where an answer differs from the contract; a note follows."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = ""
    for step in first["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    where = f"the answer's {path}" if path else "the answer"
    return ResponseShapeError(f"{where}: {first['msg']}{note}", path=path, body=body)

"""Bytes of an answer into its type, checked; what is wrong is named by its path. Pure."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from headgate._core.request import Call
from headgate._transport.types import Received
from headgate.errors import ResponseShapeError
from headgate.types.shared import Answer, Raw

ModelT = TypeVar("ModelT", bound=BaseModel)


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


def shape_error(error: ValidationError, body: bytes) -> ResponseShapeError:
    """Where an answer differs from the contract."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = ""
    for step in first["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    where = path or "the body"
    return ResponseShapeError(f"the answer's {where}: {first['msg']}", path=path, body=body)

# Generated from headgate/_async/responses.py by sdk/scripts/unasync.py. Do not edit.
"""`client.responses`."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

from headgate._core import request
from headgate._core.response_fold import ResponseFold
from headgate._sync.engine import Engine
from headgate._sync.stream import Stream, StreamManager
from headgate.types.responses import (
    Response,
    ResponseEvent,
    ResponseFields,
    ResponseParams,
    ResponseStreamParams,
)
from headgate.types.shared import OPTION_NAMES

_PATH = "/v1/responses"
_FIELDS = frozenset(ResponseFields.__annotations__)
_STREAM_OPTIONS = OPTION_NAMES | {"resumable"}


class Responses:
    """`client.responses`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @overload
    def create(self, *, stream: Literal[False] = False, **params: Unpack[ResponseParams]) -> Response: ...
    @overload
    def create(
        self, *, stream: Literal[True], **params: Unpack[ResponseStreamParams]
    ) -> Stream[ResponseEvent, Response]: ...
    @overload
    def create(
        self, *, stream: bool, **params: Unpack[ResponseStreamParams]
    ) -> Response | Stream[ResponseEvent, Response]: ...
    def create(self, *, stream: bool = False, **params: Any) -> Any:
        """Ask a model; arguments as OpenAI's, errors as for chat."""
        if stream:
            return self._stream(params)
        body, options = request.split(params, _FIELDS, OPTION_NAMES, "responses.create")
        request.require(body, "responses.create", "model", "input")
        return self._engine.post(Response, _PATH, body, options)

    def stream(self, **params: Unpack[ResponseStreamParams]) -> StreamManager[ResponseEvent, Response]:
        """A stream that opens with the block."""
        return StreamManager(lambda: self._stream(dict(params)))

    def _stream(self, params: dict[str, Any]) -> Stream[ResponseEvent, Response]:
        body, options = request.split(params, _FIELDS, _STREAM_OPTIONS, "responses.stream")
        request.require(body, "responses.stream", "model", "input")
        return self._engine.stream(ResponseFold(), _PATH, body, options)

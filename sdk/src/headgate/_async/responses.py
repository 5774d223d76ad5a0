"""`client.responses`."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

from headgate._async.engine import AsyncEngine
from headgate._async.stream import AsyncStream, AsyncStreamManager
from headgate._core import request
from headgate._core.response_fold import ResponseFold
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


class AsyncResponses:
    """`client.responses`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @overload
    async def create(self, *, stream: Literal[False] = False, **params: Unpack[ResponseParams]) -> Response: ...
    @overload
    async def create(
        self, *, stream: Literal[True], **params: Unpack[ResponseStreamParams]
    ) -> AsyncStream[ResponseEvent, Response]: ...
    @overload
    async def create(
        self, *, stream: bool, **params: Unpack[ResponseStreamParams]
    ) -> Response | AsyncStream[ResponseEvent, Response]: ...
    async def create(self, *, stream: bool = False, **params: Any) -> Any:
        """Ask a model; arguments as OpenAI's, errors as for chat."""
        if stream:
            return await self._stream(params)
        body, options = request.split(params, _FIELDS, OPTION_NAMES, "responses.create")
        request.require(body, "responses.create", "model", "input")
        return await self._engine.post(Response, _PATH, body, options)

    def stream(self, **params: Unpack[ResponseStreamParams]) -> AsyncStreamManager[ResponseEvent, Response]:
        """A stream that opens with the block."""
        return AsyncStreamManager(lambda: self._stream(dict(params)))

    async def _stream(self, params: dict[str, Any]) -> AsyncStream[ResponseEvent, Response]:
        body, options = request.split(params, _FIELDS, _STREAM_OPTIONS, "responses.stream")
        request.require(body, "responses.stream", "model", "input")
        return await self._engine.stream(ResponseFold(), _PATH, body, options)

"""`client.embeddings`: lists of any length, split into batches under one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Unpack

from headgate._async import colour
from headgate._async.engine import AsyncEngine
from headgate._core import batches, request
from headgate.types.embeddings import EmbeddingFields, EmbeddingParams, EmbeddingsResponse
from headgate.types.shared import OPTION_NAMES

_PATH = "/v1/embeddings"
_FIELDS = frozenset(EmbeddingFields.__annotations__)
_OPTIONS = OPTION_NAMES | {"batch_size"}
_AT_ONCE = 4


class AsyncEmbeddings:
    """`client.embeddings`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, **params: Unpack[EmbeddingParams]) -> EmbeddingsResponse:
        """Embed one text or many.

        Args:
            **params: OpenAI's parameters, `input_type`, `prompt_name`, `truncate`, `batch_size`, and the options
                of any call.

        Raises:
            HeadgateError: Typed by what happened. Of a split list the first failure is raised.
        """
        body, options = request.split(params, _FIELDS, _OPTIONS, "embeddings.create")
        request.require(body, "embeddings.create", "model", "input")
        body.setdefault("encoding_format", "base64")
        size = options.get("batch_size", batches.SIZE)
        parts = batches.parts(body["input"], size)
        if len(parts) == 1:
            return await self._engine.post(EmbeddingsResponse, _PATH, {**body, "input": parts[0]}, options)
        session = self._engine.session
        until = session.clock.monotonic() + request.allowed(options, session.clocks(options))

        def part(number: int) -> Callable[[], Awaitable[EmbeddingsResponse]]:
            async def run() -> EmbeddingsResponse:
                # One call, one deadline: the parts share it.
                left = {**batches.options(options, number), "deadline": until - session.clock.monotonic()}
                document = {**body, "input": parts[number]}
                return await self._engine.post(EmbeddingsResponse, _PATH, document, left)

            return run

        return batches.joined(await colour.gather([part(n) for n in range(len(parts))], at_once=_AT_ONCE))

"""`client.quotes`: what a request would cost at most, before it is made."""

from __future__ import annotations

from typing import Any, Unpack, overload

from headgate._async.engine import AsyncEngine
from headgate._core import infer_wire, request
from headgate.types.chat import ChatFields, ChatParams
from headgate.types.completions import CompletionFields, CompletionParams
from headgate.types.embeddings import EmbeddingFields, EmbeddingParams
from headgate.types.infer import InferParams
from headgate.types.quotes import Quote
from headgate.types.rerank import ClassifyParams, RerankParams
from headgate.types.responses import ResponseFields, ResponseParams
from headgate.types.shared import OPTION_NAMES

_KINDS = (
    ChatFields, CompletionFields, ResponseFields, EmbeddingFields, RerankParams, ClassifyParams, InferParams,
)  # fmt: skip
_FIELDS = frozenset[str]().union(*(kind.__annotations__ for kind in _KINDS)) - OPTION_NAMES


class AsyncQuotes:
    """`client.quotes`: what a request would cost at most."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @overload
    async def create(self, **params: Unpack[ChatParams]) -> Quote: ...
    @overload
    async def create(self, **params: Unpack[CompletionParams]) -> Quote: ...
    @overload
    async def create(self, **params: Unpack[ResponseParams]) -> Quote: ...
    @overload
    async def create(self, **params: Unpack[EmbeddingParams]) -> Quote: ...
    @overload
    async def create(self, **params: Unpack[RerankParams]) -> Quote: ...
    @overload
    async def create(self, **params: Unpack[ClassifyParams]) -> Quote: ...
    @overload
    async def create(self, **params: Unpack[InferParams]) -> Quote: ...
    async def create(self, **params: Any) -> Quote:
        """The upper bound of the request that has these parameters, whatever the model does with it.

        Nothing runs and nothing is held. An embedding of a longer list than fits one request is quoted as one.

        Raises:
            InvalidRequest: The parameters are not those of the model's task.
            NotFound: There is no such model.
            TensorError: An input cannot be sent as JSON, which is what quotes are asked in.
        """
        params.pop("batch_size", None)
        body, options = request.split(params, _FIELDS, OPTION_NAMES, "quotes.create")
        request.require(body, "quotes.create", "model")
        if "inputs" in body:
            document, _, _ = infer_wire.encode({**body, "binary": False})
            body = {**document, "model": body["model"]}
        return await self._engine.post(Quote, "/v1/quotes", body, options)

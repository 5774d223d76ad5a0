# Generated from headgate/_async/quotes.py by sdk/scripts/unasync.py. Do not edit.
"""`client.quotes`: what a request would cost at most, before it is made."""

from __future__ import annotations

from typing import Any, Unpack, overload

from headgate._core import infer_wire, request
from headgate._sync.engine import Engine
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


class Quotes:
    """`client.quotes`: what a request would cost at most."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @overload
    def create(self, **params: Unpack[ChatParams]) -> Quote: ...
    @overload
    def create(self, **params: Unpack[CompletionParams]) -> Quote: ...
    @overload
    def create(self, **params: Unpack[ResponseParams]) -> Quote: ...
    @overload
    def create(self, **params: Unpack[EmbeddingParams]) -> Quote: ...
    @overload
    def create(self, **params: Unpack[RerankParams]) -> Quote: ...
    @overload
    def create(self, **params: Unpack[ClassifyParams]) -> Quote: ...
    @overload
    def create(self, **params: Unpack[InferParams]) -> Quote: ...
    def create(self, **params: Any) -> Quote:
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
        return self._engine.post(Quote, "/v1/quotes", body, options)

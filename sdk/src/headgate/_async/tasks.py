"""One-pass tasks: `client.infer`, `client.rerank`, `client.classify`."""

from __future__ import annotations

from typing import Unpack

from headgate._async.engine import AsyncEngine
from headgate._core import infer_wire, request
from headgate.types.infer import InferParams, InferResponse
from headgate.types.rerank import ClassifyParams, ClassifyResponse, RerankParams, RerankResponse
from headgate.types.shared import OPTION_NAMES

_INFER_NAMES = frozenset(InferParams.__annotations__) - OPTION_NAMES
_RERANK_NAMES = frozenset(RerankParams.__annotations__) - OPTION_NAMES
_CLASSIFY_NAMES = frozenset(ClassifyParams.__annotations__) - OPTION_NAMES


class AsyncInfer:
    """`client.infer`: tensors in, tensors out."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, **params: Unpack[InferParams]) -> InferResponse:
        """Run a model on tensors: numpy arrays or nested lists, by name.

        Raises:
            TensorError: An input cannot be sent; the message names it.
            HeadgateError: Typed by what happened.
        """
        given, options = request.split(params, _INFER_NAMES, OPTION_NAMES, "infer.create")
        request.require(given, "infer.create", "model", "inputs")
        given["extra_body"] = options.get("extra_body")
        document, payload, headers = infer_wire.encode(given)
        path = "/v2/models/" + request.segment("model", given["model"])
        if (version := given.get("version")) is not None:
            path += "/versions/" + request.segment("version", str(version))
        document["model"] = given["model"]
        return await self._engine.send(path + "/infer", payload, document, options, headers, infer_wire.decode)


class AsyncRerank:
    """`client.rerank`: documents, best first."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, **params: Unpack[RerankParams]) -> RerankResponse:
        """Order documents by how well they answer a query."""
        body, options = request.split(params, _RERANK_NAMES, OPTION_NAMES, "rerank.create")
        request.require(body, "rerank.create", "model", "query", "documents")
        return await self._engine.post(RerankResponse, "/v1/rerank", body, options)


class AsyncClassify:
    """`client.classify`: texts and their labels."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, **params: Unpack[ClassifyParams]) -> ClassifyResponse:
        """Label one text or many."""
        body, options = request.split(params, _CLASSIFY_NAMES, OPTION_NAMES, "classify.create")
        request.require(body, "classify.create", "model", "input")
        return await self._engine.post(ClassifyResponse, "/v1/classify", body, options)

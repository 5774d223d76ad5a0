"""Routes that run models, in the dialects of OpenAI and of the Open Inference Protocol, and Headgate's scores.

May import the rest of this room and the dialects.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from headgate_dialects import kserve, openai_chat, openai_completions, openai_embeddings, openai_responses, scores
from headgate_dialects.decoded import Decoded
from headgate_plugin_api import EmbedPayload, InvalidRequest
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from headgate_gateway.http.answering import Dialect
from headgate_gateway.http.calling import answer
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.models.registry import ServedModel


def _check_embedding(decoded: Decoded, served: ServedModel) -> None:
    """Token ids mean another text to every vocabulary: local models take them only where the operator says so."""
    if served.settings.accept_token_ids or not any(target.local for target in served.targets):
        return
    assert isinstance(decoded.payload, EmbedPayload)
    if not all(isinstance(item, str) for item in decoded.payload.inputs):
        raise InvalidRequest(
            "input: this model takes text, not token ids; with LangChain's OpenAIEmbeddings set "
            "check_embedding_ctx_length=False",
            path="input",
        )


def _check_infer(_decoded: Decoded, served: ServedModel) -> None:
    """JSON has no form for half floats; say so before anything runs."""
    for output in served.info.outputs if served.info is not None else ():
        if output.datatype in {"FP16", "BF16"}:
            raise InvalidRequest(
                f"outputs: {output.name!r} is {output.datatype}, which has no form in JSON", path="outputs"
            )


CHAT = Dialect(
    name=openai_chat.NAME,
    decode=openai_chat.decode_request,
    encode=openai_chat.encode_answer,
    stream=openai_chat.StreamEncoder,
)
COMPLETIONS = Dialect(
    name=openai_completions.NAME,
    decode=openai_completions.decode_request,
    encode=openai_completions.encode_answer,
    stream=openai_completions.StreamEncoder,
)
RESPONSES = Dialect(
    name=openai_responses.NAME,
    decode=openai_responses.decode_request,
    encode=openai_responses.encode_answer,
    stream=openai_responses.StreamEncoder,
)
EMBEDDINGS = Dialect(
    name=openai_embeddings.NAME,
    decode=openai_embeddings.decode_request,
    encode=openai_embeddings.encode_answer,
    check=_check_embedding,
)
RERANK = Dialect(name=scores.RERANK, decode=scores.decode_rerank, encode=scores.encode_rerank)
CLASSIFY = Dialect(name=scores.CLASSIFY, decode=scores.decode_classify, encode=scores.encode_classify)
INFER = Dialect(name=kserve.NAME, decode=kserve.decode_request, encode=kserve.encode_answer, check=_check_infer)

ROUTES: dict[str, Dialect] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/rerank": RERANK,
    "/v1/classify": CLASSIFY,
}


def inference_apps(rooms: Rooms) -> dict[str, ASGIApp]:
    """What answers a POST, by address."""
    return {path: partial(answer, rooms, dialect) for path, dialect in ROUTES.items()}


def inference_routes(apps: Mapping[str, ASGIApp]) -> list[HTTPRouteHandler]:
    """One handler for each of `inference_apps`."""
    return [_route(path, app) for path, app in apps.items()]


def _route(path: str, app: ASGIApp) -> HTTPRouteHandler:
    @post(path, name=path, status_code=200)
    async def handle(request: Request[Any, Any, Any]) -> ASGIApp:  # noqa: ARG001 - the answer has it all in its scope
        return app

    return handle

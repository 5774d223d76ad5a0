"""Quotes: what a request would cost at most, before it is made. Nothing runs and nothing is held.

May import the rest of this room, inference and domain.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from headgate_plugin_api import DIMENSIONS, InferenceRequest, Task, Usage
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from headgate_gateway.domain.admission import Principal
from headgate_gateway.domain.money import format_amount
from headgate_gateway.domain.pricing import PriceVersion, quoted_terms, upper
from headgate_gateway.http.answering import Dialect
from headgate_gateway.http.bodies import parse_object, read_body
from headgate_gateway.http.credentials import authorize
from headgate_gateway.http.edge import facts_of
from headgate_gateway.http.inference_routes import (
    CHAT,
    CLASSIFY,
    COMPLETIONS,
    EMBEDDINGS,
    INFER,
    RERANK,
    RESPONSES,
)
from headgate_gateway.http.problems import Problem
from headgate_gateway.http.replies import document
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.inference.bounds import Bound
from headgate_gateway.inference.errors import UnknownModel
from headgate_gateway.inference.service import Call

DIALECTS: Final[dict[Task, Dialect]] = {
    "chat": CHAT,
    "completion": COMPLETIONS,
    "embed": EMBEDDINGS,
    "rerank": RERANK,
    "classify": CLASSIFY,
    "infer": INFER,
}
"""What the body of a quote is, by the task of the model that it names: the body of the request it is about."""


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """An upper bound of one request.

    Attributes:
        object: Always `quote`.
        model: The model's id.
        price: The price version in force for this key; None where the model has no price.
        upper: The most that the request can cost, a decimal string; None where the model has no price.
        bound: The most that it can consume, by dimension; `gpu_ms` only where that has a price.
        rates: The price's rates as decimal strings, tokens per million; its tiers and minimum where it has any.
        max_output_tokens: The output limit that it would run with, per choice; None for tasks without output.
    """

    object: str = "quote"
    model: str
    price: str | None
    upper: str | None
    bound: dict[str, int]
    rates: dict[str, Any]
    max_output_tokens: int | None


def quote_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    """The handler."""

    @post("/v1/quotes", name="quotes", status_code=200)
    async def create_quote(request: Request[Any, Any, Any]) -> ASGIApp:
        principal = await authorize(rooms, request.scope, "inference")
        body = parse_object(await read_body(request.scope, request.receive, max_bytes=rooms.max_body))
        facts = facts_of(request.scope)
        return document(msgspec.to_builtins(_quote(rooms, principal, body, facts.request_id)))

    return [create_quote]


def _quote(rooms: Rooms, principal: Principal, body: dict[str, Any], request_id: str) -> Quote:
    model_id = body.get("model")
    if not isinstance(model_id, str):
        raise Problem("invalid_request", "model: expected the id of a model", path="model")
    served = rooms.registry.find(model_id)
    if served is None:
        raise UnknownModel(model_id)
    dialect = DIALECTS[served.settings.task]
    if dialect is CHAT and "messages" not in body and "input" in body:
        dialect = RESPONSES
    decoded = dialect.decode(body)
    dialect.fit(decoded, served)
    call = Call(
        principal=principal,
        request=InferenceRequest(
            id=request_id,
            model=model_id,
            payload=decoded.payload,
            max_output=decoded.max_output,
            options=decoded.options,
        ),
    )
    return _quoted(served.id, rooms.inference.bound(call), rooms.ledger.price_of(principal, served.id))


def _quoted(model_id: str, bound: Bound, version: PriceVersion | None) -> Quote:
    usage: Usage = msgspec.structs.replace(bound.usage, output=bound.most)
    if version is None or not version.rates.get("gpu_ms"):
        # Without a price for it, it is no more than the model's time limit.
        usage = msgspec.structs.replace(usage, gpu_ms=0)
    return Quote(
        model=model_id,
        price=None if version is None else version.id,
        upper=None if version is None else format_amount(upper(usage, version)),
        bound={name: getattr(usage, name) for name in DIMENSIONS if getattr(usage, name)},
        rates={} if version is None else quoted_terms(version.terms),
        max_output_tokens=bound.limit,
    )

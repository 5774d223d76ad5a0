"""Where an inference call enters: the caller is recognised, the body decoded, and its way chosen.

May import the rest of this room, inference and the dialects.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import msgspec
from headgate_dialects.decoded import AnswerMeta, Decoded
from headgate_plugin_api import InferenceRequest, Native
from litestar.types import Receive, Scope, Send

from headgate_gateway.domain.admission import Principal
from headgate_gateway.http import headers
from headgate_gateway.http.answering import Answering, Dialect
from headgate_gateway.http.asked import ASKING, read_attempt, read_claim, read_deadline, read_tags
from headgate_gateway.http.bodies import parse_object, read_body
from headgate_gateway.http.credentials import authenticate
from headgate_gateway.http.edge import Facts, facts_of
from headgate_gateway.http.problems import Problem
from headgate_gateway.http.resuming import resumption, stream_resumably
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.inference.service import Call
from headgate_gateway.models.registry import ServedModel


async def answer(
    rooms: Rooms,
    dialect: Dialect,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    model: str = "",
    version: str = "1",
) -> None:
    """Answer one call.

    Args:
        rooms: Whom to ask.
        dialect: The one that the route speaks.
        scope: ASGI.
        receive: ASGI.
        send: ASGI.
        model: The model, where the path names it.
        version: The model's version, where the dialect shows it.

    Raises:
        Exception: What `problems.of_error` knows; nothing has been sent then.
    """
    facts = facts_of(scope)
    principal = await authenticate(rooms, scope)
    if not principal.key_id:
        raise Problem(
            "permission_denied", "the admin key runs no models; `headgate keys create` makes a key that does"
        )
    asking = not ASKING.isdisjoint(headers.firsts(scope))
    if asking and (attempt := read_attempt(scope)) > 1:
        rooms.metrics.repeated(attempt)
    document = parse_object(await read_body(scope, receive, max_bytes=rooms.max_body))
    decoded = dialect.decode(document)
    if model:
        decoded = msgspec.structs.replace(decoded, model=model)
    facts.model = decoded.model
    served = rooms.registry.find(decoded.model)
    if served is not None:
        facts.model = served.id
        dialect.fit(decoded, served)
    call = _call(scope, facts, principal, dialect, document, decoded, served, asking=asking)
    meta = AnswerMeta(
        id=facts.request_id,
        model=decoded.model,
        created=rooms.clock.now_us() // 1_000_000,
        include_usage=decoded.include_usage,
        version=version,
        show=decoded.show,
        payload=decoded.payload,
    )
    answering = Answering(rooms, dialect, facts, call, meta, served)
    if not call.request.stream:
        await answering.whole(scope, send)
    elif asked := resumption(scope, call, rooms.settings.server.stream_resume_s):
        await stream_resumably(answering, asked, scope, send)
    else:
        await answering.stream(scope, send)


def _call(
    scope: Scope,
    facts: Facts,
    principal: Principal,
    dialect: Dialect,
    document: dict[str, Any],
    decoded: Decoded,
    served: ServedModel | None,
    *,
    asking: bool,
) -> Call:
    # Only a provider can make use of the client's own document; engines are spared it.
    remote = served is not None and not served.local
    return Call(
        principal=principal,
        request=InferenceRequest(
            id=facts.request_id,
            model=decoded.model,
            payload=decoded.payload,
            max_output=decoded.max_output,
            stream=decoded.stream and dialect.stream is not None,
            options=decoded.options,
            native=Native(dialect=dialect.name, document=document, beyond=decoded.beyond) if remote else None,
        ),
        claim=read_claim(scope, document) if asking else None,
        tags=read_tags(scope, decoded.tags) if asking else decoded.tags,
        deadline_ms=read_deadline(scope, monotonic() - facts.began) if asking else None,
    )

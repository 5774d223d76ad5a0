"""Routes for whoever watches: health, metrics, the API's own description.

May import the rest of this room and telemetry.
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from headgate_gateway.http.credentials import authorize
from headgate_gateway.http.problems import OK, SERVICE_UNAVAILABLE
from headgate_gateway.http.replies import body, document
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.http.schema import openapi_bytes
from headgate_gateway.telemetry.metrics import CONTENT_TYPE


def health_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    """The handlers. None but `/metrics` asks for a key."""

    @get("/health/live", name="live")
    async def live() -> ASGIApp:
        return document({"status": "ok"})

    @get("/health/ready", name="ready")
    async def ready() -> ASGIApp:
        facts = readiness(rooms)
        return document(facts, OK if facts["ready"] else SERVICE_UNAVAILABLE)

    @get("/v2/health/live", name="v2-live")
    async def v2_live() -> ASGIApp:
        return document({"live": True})

    @get("/v2/health/ready", name="v2-ready")
    async def v2_ready() -> ASGIApp:
        facts = readiness(rooms)
        return document({"ready": facts["ready"]}, OK if facts["ready"] else SERVICE_UNAVAILABLE)

    @get("/metrics", name="metrics")
    async def metrics(request: Request[Any, Any, Any]) -> ASGIApp:
        if not rooms.settings.metrics.public:
            await authorize(rooms, request.scope, "admin")
        rooms.metrics.ledger(ready=not rooms.ledger.trouble)
        rooms.metrics.flush()
        return body(await asyncio.to_thread(rooms.metrics.render), CONTENT_TYPE)

    @get("/schema", name="schema")
    async def schema() -> ASGIApp:
        return body(openapi_bytes(), "application/json")

    return [live, ready, v2_live, v2_ready, metrics, schema]


def readiness(rooms: Rooms) -> dict[str, Any]:
    """Whether this worker can serve, and what every model is doing.

    A model that fails after it was ready is its own trouble and does not make the gateway unready.
    """
    models = [
        {
            "id": served.id,
            "task": served.settings.task,
            "state": served.state,
            "reason": served.reason,
            "required": served.settings.required,
        }
        for served in rooms.registry.all()
    ]
    all_were_ready = all(served.was_ready for served in rooms.registry.all() if served.settings.required)
    trouble = rooms.ledger.trouble
    return {
        "ready": not trouble and all_were_ready,
        "ledger": "unavailable" if trouble else "ready",
        "reason": trouble or None,
        "models": models,
    }

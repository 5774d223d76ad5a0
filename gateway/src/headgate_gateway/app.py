"""The composition of a worker's application: the only place that knows every room.

May import everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Never

from litestar import Litestar, Request, Router
from litestar.types import ASGIApp

from headgate_gateway.domain.ids import IdSource
from headgate_gateway.http.admin_routes import admin_routes, only_at
from headgate_gateway.http.cors import Cors
from headgate_gateway.http.edge import Edge
from headgate_gateway.http.health_routes import health_routes
from headgate_gateway.http.inference_routes import inference_apps, inference_routes
from headgate_gateway.http.model_routes import model_routes
from headgate_gateway.http.quote_routes import quote_routes
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.http.usage_routes import operator_routes, usage_routes
from headgate_gateway.telemetry.access import AccessLog


def create_app(rooms: Rooms, inference: Mapping[str, ASGIApp], admin_port: int | None = None) -> Litestar:
    """The framework's application. It answers no error itself: serve it inside an `Edge`.

    Args:
        rooms: What the handlers reach.
        inference: What answers model calls, by address.
        admin_port: Where the admin API answers, and nowhere else; None where it answers everywhere.
    """
    operators = [*admin_routes(rooms), *operator_routes(rooms)]
    return Litestar(
        route_handlers=[
            *inference_routes(inference),
            *quote_routes(rooms),
            *model_routes(rooms),
            *health_routes(rooms),
            *usage_routes(rooms),
            Router("/", route_handlers=operators, guards=[only_at(admin_port)] if admin_port else []),
        ],
        exception_handlers={Exception: _pass_on},
        openapi_config=None,
        logging_config=None,
    )


def create_edge(
    rooms: Rooms, ids: IdSource, access: AccessLog | None = None, admin_port: int | None = None
) -> Edge:
    """What a server is given: the application inside its edge."""
    inference = inference_apps(rooms)
    app = create_app(rooms, inference, admin_port)
    return Edge(
        app,
        ids=ids,
        metrics=rooms.metrics,
        cors=Cors(rooms.settings.server.cors_origins),
        access=access,
        direct=inference,
        routes=app.routes,
    )


def _pass_on(_request: Request[Any, Any, Any], error: Exception) -> Never:
    """Every error is the edge's to answer, whatever the framework would say by itself."""
    raise error

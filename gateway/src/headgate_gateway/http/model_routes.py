"""Routes about models: OpenAI's list, and the Open Inference Protocol: metadata, readiness, infer.

May import the rest of this room.
"""

from __future__ import annotations

from typing import Any, Final

from headgate_plugin_api import TensorSignature
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from headgate_gateway.domain.admission import Principal
from headgate_gateway.domain.pricing import quoted_terms
from headgate_gateway.http import absent, headers
from headgate_gateway.http.calling import answer
from headgate_gateway.http.credentials import authenticate
from headgate_gateway.http.inference_routes import INFER
from headgate_gateway.http.problems import OK, SERVICE_UNAVAILABLE, Problem
from headgate_gateway.http.replies import document
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.models.registry import ServedModel

OWNER: Final = "headgate"
_ACTIONS: Final = ("infer", "ready")


def model_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    """The handlers."""

    @get("/v1/models", name="models")
    async def list_models(request: Request[Any, Any, Any]) -> ASGIApp:
        principal = await authenticate(rooms, request.scope)
        models = [
            _card(rooms, principal, served) for served in rooms.registry.all() if _may_see(principal, served)
        ]
        return document({"object": "list", "data": models})

    @get("/v1/models/{model_id:path}", name="model")
    async def get_model(request: Request[Any, Any, Any]) -> ASGIApp:
        principal = await authenticate(rooms, request.scope)
        served = _find(rooms, principal, request.path_params["model_id"].strip("/"))
        return document(_card(rooms, principal, served))

    return [list_models, get_model, *_inference_protocol(rooms)]


def _inference_protocol(rooms: Rooms) -> list[HTTPRouteHandler]:
    """The handlers under `/v2`. A model's id may hold slashes, so what follows it is split off here."""

    @get("/v2", name="v2")
    async def server() -> ASGIApp:
        return document({"name": "headgate", "version": headers.RELEASE, "extensions": []})

    @get("/v2/models/{rest:path}", name="v2-model")
    async def metadata(request: Request[Any, Any, Any]) -> ASGIApp:
        principal = await authenticate(rooms, request.scope)
        model_id, version, action = split_path(request.path_params["rest"])
        if action == "infer":
            raise Problem("method_not_allowed", "infer is a POST", members={"allow": "POST"})
        if rooms.registry.find(model_id) is None and (told := absent.told(request.scope["path"])):
            raise Problem("not_found", told)
        served = _find(rooms, principal, model_id)
        _check_version(served, version)
        if action == "ready":
            return _readiness(served)
        return document(_metadata(served))

    @post("/v2/models/{rest:path}", name="v2-infer", status_code=200)
    async def infer(request: Request[Any, Any, Any]) -> ASGIApp:
        model_id, version, action = split_path(request.path_params["rest"])
        if action != "infer":
            await authenticate(rooms, request.scope)
            if rooms.registry.find(model_id) is None:
                raise Problem("not_found", absent.told(request.scope["path"]) or absent.NOTHING)
            raise Problem("method_not_allowed", f"{action or 'metadata'} is a GET", members={"allow": "GET"})
        if headers.find(request.scope, headers.BINARY) is not None:
            raise Problem("invalid_request", absent.missing(absent.BINARY), path=headers.BINARY.decode())

        async def reply(scope: Scope, receive: Receive, send: Send) -> None:
            served = rooms.registry.find(model_id)
            shown = served.settings.version if served is not None else "1"
            if served is not None:
                await authenticate(rooms, scope)
                _check_version(served, version)
            await answer(rooms, INFER, scope, receive, send, model=model_id, version=shown)

        return reply

    return [server, metadata, infer]


def split_path(rest: str) -> tuple[str, str | None, str]:
    """`org/model/versions/2/infer` as the model's id, its version (None for the loaded one) and the action.

    The action is one of `_ACTIONS`, or empty (metadata).
    """
    parts = rest.strip("/").split("/")
    action = parts.pop() if len(parts) > 1 and parts[-1] in _ACTIONS else ""
    version = None
    if len(parts) > 2 and parts[-2] == "versions":
        version = parts[-1]
        parts = parts[:-2]
    return "/".join(parts), version, action


def _may_see(principal: Principal, served: ServedModel) -> bool:
    return principal.admin or principal.models is None or served.id in principal.models


def _find(rooms: Rooms, principal: Principal, model_id: str) -> ServedModel:
    served = rooms.registry.find(model_id)
    if served is None:
        raise Problem(
            "model_not_found", f"the model {model_id!r} does not exist; GET /v1/models lists those that do"
        )
    if not _may_see(principal, served):
        raise Problem("permission_denied", f"this key may not ask for the model {model_id!r}")
    return served


def _check_version(served: ServedModel, version: str | None) -> None:
    loaded = served.settings.version
    if version is not None and version != loaded:
        raise Problem("model_not_found", f"version {version!r} of {served.id!r} is not loaded, {loaded!r} is")


def _card(rooms: Rooms, principal: Principal, served: ServedModel) -> dict[str, Any]:
    """What a client can know of a model; `price` is the one in force for its key, tokens per million."""
    info, settings = served.info, served.settings
    version = rooms.ledger.price_of(principal, served.id)
    card: dict[str, Any] = {
        "id": served.id,
        "object": "model",
        "created": rooms.started_s,
        "owned_by": OWNER,
        "task": settings.task,
        "state": served.state,
        "price": None if version is None else quoted_terms(version.terms),
        "aliases": list(settings.aliases),
        "max_input_tokens": settings.max_input_tokens or (info.max_input_tokens if info else None),
        "max_output_tokens": settings.max_output_tokens or (info.max_output_tokens if info else None),
    }
    if served.reason:
        card["reason"] = served.reason
    if info is not None and info.fingerprint:
        card["fingerprint"] = info.fingerprint
    if info is not None and info.dimensions is not None:
        card["dimensions"] = info.dimensions
    if info is not None and info.labels:
        card["labels"] = list(info.labels)
    return card


def _metadata(served: ServedModel) -> dict[str, Any]:
    info = served.info
    return {
        "name": served.id,
        "versions": [served.settings.version],
        "platform": (info.platform if info is not None else "") or (served.settings.backend or "remote"),
        "inputs": [_signature(tensor) for tensor in info.inputs] if info is not None else [],
        "outputs": [_signature(tensor) for tensor in info.outputs] if info is not None else [],
    }


def _signature(tensor: TensorSignature) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _readiness(served: ServedModel) -> ASGIApp:
    ready = served.state == "ready"
    facts = {"name": served.id, "ready": ready, "state": served.state, "reason": served.reason}
    return document(facts, OK if ready else SERVICE_UNAVAILABLE)

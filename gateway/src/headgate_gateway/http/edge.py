"""The outermost layer of the application: ids, headers of every answer, metrics, and all errors.

May import headers, problems and telemetry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from time import monotonic
from types import MappingProxyType
from typing import Any, Final, cast

import msgspec
import structlog
from litestar.enums import ScopeType
from litestar.exceptions import LitestarException, MethodNotAllowedException, NotFoundException
from litestar.routes import BaseRoute
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from headgate_gateway.domain.ids import IdSource
from headgate_gateway.http import absent, headers
from headgate_gateway.http.bodies import CLIENT, ClientGone
from headgate_gateway.http.cors import Cors
from headgate_gateway.http.problems import NO_CONTENT, PROBLEM_TYPE, Problem, body_problem, of_error
from headgate_gateway.http.sending import ANSWER, send_bytes, send_document
from headgate_gateway.telemetry.access import AccessLog
from headgate_gateway.telemetry.metrics import Metrics

KEY: Final = "headgate"
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
_BEGINNINGS: Final = frozenset({"http.response.start", ANSWER})

_METHODS: Final = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")

_PROBES: Final = ("/health/", "/v2/health/")

_COST_UNKNOWN: Final = frozenset({"ledger_unavailable", "internal_error"})
"""Errors under which a charge may still follow. Any other that comes instead of an answer means: no charge."""

_log = structlog.get_logger("headgate.http")


class Facts(msgspec.Struct, eq=False):
    """What is known of a request while it is answered.

    Attributes:
        request_id: `req_...`; also the id of the usage record where there is one.
        began: Monotonic seconds.
        model: The model that it asks for, once known.
        key: Id of the key that asks, once known.
        cost: What was charged, a decimal string, once known.
        code: `ok`, or the error code that it ended with.
        status: Of the answer, once its headers have left.
        tried: Headers that say which backends were asked in vain.
    """

    request_id: str
    began: float = msgspec.field(default_factory=monotonic)
    model: str = ""
    key: str = ""
    cost: str = ""
    code: str = "ok"
    status: int | None = None
    tried: headers.Pairs = []


def facts_of(scope: Mapping[str, Any]) -> Facts:
    """The facts of the request that `scope` belongs to."""
    facts: Facts = scope[KEY]
    return facts


class Edge:
    """An ASGI application around the framework's.

    Args:
        app: What it is around.
        ids: Makes request ids.
        metrics: Counts.
        cors: Which web pages may call.
        access: Notes every request but the probes of health that went well.
        direct: Applications of the busiest addresses, for POST: they are asked without the framework between,
            which knows them as well and answers for every other method.
        routes: What the framework knows, for OPTIONS.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ids: IdSource,
        metrics: Metrics,
        cors: Cors,
        access: AccessLog | None = None,
        direct: Mapping[str, ASGIApp] = MappingProxyType({}),
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._app = app
        self._direct = direct
        self._routes = routes
        self._cors = cors
        self.ids = ids
        self._metrics = metrics
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # As GET, and the server leaves out the body: probes of load balancers ask this way.
            scope = cast("HTTPScope", {**scope, "method": "GET"})
        facts = scope[KEY] = Facts(self.ids.request())  # type: ignore[typeddict-unknown-key]
        path = scope["path"]
        allowed = self._cors.allowed(scope)
        counted = runs_models(path)

        async def send_with_headers(message: Any) -> None:
            if message["type"] in _BEGINNINGS:
                facts.status = message["status"]
                message["headers"] = [*message["headers"], *headers.of_request(facts.request_id), *allowed]
            await send(message)

        if counted:
            self._metrics.began()
        try:
            _check_headers(scope)
            if allowed and (preflight := self._cors.preflight(scope)) is not None:
                await send_bytes(send_with_headers, NO_CONTENT, b"", preflight)
                return
            if scope["method"] == "OPTIONS" and (allow := _methods(path, self._routes)):
                await send_bytes(send_with_headers, NO_CONTENT, b"", [(b"allow", allow.encode("ascii"))])
                return
            app = self._direct.get(path, self._app) if scope["method"] == "POST" else self._app
            await app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 - the last place where anything can be answered
            await answer_error(_original(error), scope, send_with_headers)
        finally:
            # It holds the scope as well; only the garbage collector would end the two.
            scope.pop(CLIENT, None)  # type: ignore[typeddict-item]
            seconds = monotonic() - facts.began
            if counted:
                self._metrics.ended(facts.model, facts.code, seconds)
            if self._access is not None and not (facts.code == "ok" and path.startswith(_PROBES)):
                client = scope["client"]
                self._access.note(
                    facts.request_id,
                    scope["method"],
                    path,
                    status=facts.status,
                    code=facts.code,
                    seconds=seconds,
                    model=facts.model,
                    key=facts.key,
                    cost=facts.cost,
                    client=client[0] if client else "",
                )


def runs_models(path: str) -> bool:
    """Whether an address is one of those that clients ask models at."""
    return path.startswith(("/v1", "/v2/models", "/rerank"))


def _original(error: Exception) -> Exception:
    """The framework wraps what is raised after an answer has begun."""
    while type(error) is LitestarException and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _check_headers(scope: Scope) -> None:
    pairs = list(scope["headers"])
    size = sum(map(len, chain.from_iterable(pairs)))
    if size > MAX_HEADER_BYTES or len(pairs) > MAX_HEADERS:
        raise body_problem(
            "headers_too_large", f"expected at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all"
        )


async def answer_error(error: Exception, scope: Scope, send: Send) -> None:
    """Answer with what went wrong, unless an answer has begun."""
    facts = facts_of(scope)
    if isinstance(error, ClientGone):
        facts.code = "client_gone"
        return
    if isinstance(error, NotFoundException):
        error = Problem("not_found", absent.told(scope["path"]) or absent.NOTHING)
    if isinstance(error, MethodNotAllowedException):
        allow = _methods(scope["path"], scope["litestar_app"].routes)
        what = f"this address does not know the method; expected {allow.removesuffix(', OPTIONS')}"
        error = Problem("method_not_allowed", what, members={"allow": allow})
    problem = of_error(error, facts.request_id)
    facts.code = problem.code
    if facts.status is not None:
        _log.warning("answer cut", request_id=facts.request_id, code=problem.code)
        return
    document = problem.document(facts.request_id, route=scope["path"])
    await send_document(
        send, problem.status, document, [(b"content-type", PROBLEM_TYPE.encode()), *_extra(problem, scope)]
    )


def _extra(problem: Problem, scope: Scope) -> headers.Pairs:
    pairs = [*problem.headers(), *facts_of(scope).tried]
    if runs_models(scope["path"]) and problem.code not in _COST_UNKNOWN:
        pairs.append(headers.of_cost(problem.members.get("cost", "0")))
    if problem.code == "method_not_allowed":
        pairs.append((b"allow", problem.members["allow"].encode("ascii")))
    return pairs


def _methods(path: str, routes: Sequence[BaseRoute]) -> str:
    """The methods that an address knows; empty where there is none such.

    Of several handlers of one address the framework names the first's to OPTIONS, and none in a 405.
    """
    known: set[str] = set()
    for route in routes:
        if _leads(route.path, path.rstrip("/")):
            known |= route.methods
    if "GET" in known:
        known.add("HEAD")
    return ", ".join(method for method in _METHODS if method in known)


def _leads(template: str, path: str) -> bool:
    """Whether a route's template, such as `/admin/v1/keys/{key_id:str}/rotate`, is one of this path."""
    wanted, given = template.split("/"), path.split("/")
    if template.endswith(":path}"):
        given[len(wanted) - 1 :] = ["/".join(given[len(wanted) - 1 :])]
    return len(wanted) == len(given) and all(
        piece if part.startswith("{") else part == piece for part, piece in zip(wanted, given, strict=True)
    )

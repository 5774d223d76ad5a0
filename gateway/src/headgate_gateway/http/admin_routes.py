"""The operator's routes under `/admin/v1`: keys, accounts, budgets, limits, prices, credits, models, consumers.

Each is one command of the ledger; a document's fields are the command's. Models are loaded and unloaded by the
supervisor. May import the rest of this room, domain, models and the ledger's client.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar, get_args

import msgspec
from headgate_dialects.fields import read_request
from litestar import Request, delete, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.types import ASGIApp

from headgate_gateway.admin.consumers import ResetConsumer, removing, resetting
from headgate_gateway.admin.erasing import EraseTags, carry_out, erase
from headgate_gateway.admin.naming import unknown_model
from headgate_gateway.admin.service import CommandRejected
from headgate_gateway.admin.usage import QueryTooSlow, UsageUnavailable
from headgate_gateway.domain import commands
from headgate_gateway.http.bodies import parse_object, read_body
from headgate_gateway.http.credentials import authorize
from headgate_gateway.http.health_routes import readiness
from headgate_gateway.http.problems import CREATED, OK, Problem
from headgate_gateway.http.queries import read_page, read_time
from headgate_gateway.http.replies import document
from headgate_gateway.http.rooms import Rooms
from headgate_gateway.http.shown import grants_of, page_of, shown
from headgate_gateway.models.control import Action, NobodyThere, ask
from headgate_gateway.models.registry import ServedModel

T = TypeVar("T")
C = TypeVar("C", bound=msgspec.Struct)

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]

_WRITES: Final[dict[str, type[Any]]] = {
    "budgets": commands.SetBudget,
    "limits": commands.SetLimit,
    "prices": commands.SetPrice,
    "credits": commands.GrantCredit,
}
"""POST routes whose document is a command."""

_TIMES: Final = ("expires_at", "effective_from", "before")
"""Fields of commands that are times: microseconds UTC, or RFC 3339 as everywhere else."""


def admin_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    """The handlers; all ask for the scope `admin`."""
    return [
        *_key_routes(rooms),
        *_account_routes(rooms),
        *_price_routes(rooms),
        *(_write_route(rooms, name, command) for name, command in _WRITES.items()),
        *_model_routes(rooms),
        _tag_route(rooms),
        *_consumer_routes(rooms),
    ]


def only_at(port: int) -> Guard:
    """A guard of routes that answer only on connections to `port`."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        server = connection.scope["server"]
        if server is None or server[1] != port:
            raise Problem("not_found", "the admin API has an address of its own here (server.admin_port)")

    return guard


def _key_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    @post("/admin/v1/keys", name="create-key", status_code=CREATED)
    async def create_key(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        command = await _read_command(rooms, request, commands.CreateKey)
        return document(shown(await _run(rooms, command)), CREATED)

    @get("/admin/v1/keys", name="list-keys")
    async def list_keys(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        page = read_page(request.scope, "project")
        result = await _run(
            rooms, commands.ListKeys(project=page.filters.get("project"), after=page.after, limit=page.limit)
        )
        assert isinstance(result, commands.KeyPage)
        return document(page_of([shown(key) for key in result.keys], result.after))

    @delete("/admin/v1/keys/{key_id:str}", name="revoke-key", status_code=OK)
    async def revoke_key(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        return document(shown(await _run(rooms, commands.RevokeKey(id=request.path_params["key_id"]))))

    @post("/admin/v1/keys/{key_id:str}/rotate", name="rotate-key", status_code=CREATED)
    async def rotate_key(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        asked = await _read_command(rooms, request, commands.Overlap)
        command = commands.RotateKey(id=request.path_params["key_id"], overlap_s=asked.overlap_s)
        return document(shown(await _run(rooms, command)), CREATED)

    return [create_key, list_keys, revoke_key, rotate_key]


def _account_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    """Accounts are one tree; each kind of them has an address of its own, and so has what hangs on them."""

    def listing(path: str, kind: commands.AccountKind | None) -> HTTPRouteHandler:
        @get(path, name=path)
        async def list_accounts(request: Request[Any, Any, Any]) -> ASGIApp:
            await authorize(rooms, request.scope, "admin")
            page = read_page(request.scope)
            result = await _run(rooms, commands.ListAccounts(after=page.after, limit=page.limit, kind=kind))
            assert isinstance(result, commands.AccountPage)
            return document(page_of([shown(account) for account in result.accounts], result.after))

        return list_accounts

    def creation(path: str, shape: type[Any], kind: Literal["organization", "project"]) -> HTTPRouteHandler:
        @post(path, name=f"create-{kind}", status_code=CREATED)
        async def create_account(request: Request[Any, Any, Any]) -> ASGIApp:
            await authorize(rooms, request.scope, "admin")
            asked = await _read_command(rooms, request, shape)
            command = commands.CreateAccount(kind=kind, **msgspec.structs.asdict(asked))
            result = await _run(rooms, command)
            assert isinstance(result, commands.AccountFound)
            return document(shown(result.account), CREATED)

        return create_account

    @get("/admin/v1/credits", name="list-credits")
    async def list_credits(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        page = read_page(request.scope)
        grants: list[dict[str, Any]] = []
        after: str | None = page.after
        while after is not None and not grants:  # most accounts may have none: no page but the last is empty
            result = await _run(rooms, commands.ListAccounts(after=after, limit=page.limit))
            assert isinstance(result, commands.AccountPage)
            grants = [grant for account in result.accounts for grant in grants_of(account)]
            after = result.after
        return document(page_of(grants, after))

    @get("/admin/v1/accounts/{account:str}", name="account")
    async def get_account(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        result = await _run(rooms, commands.GetAccount(id=request.path_params["account"]))
        assert isinstance(result, commands.AccountFound)
        return document(shown(result.account))

    return [
        listing("/admin/v1/accounts", None),
        listing("/admin/v1/organizations", "organization"),
        listing("/admin/v1/projects", "project"),
        creation("/admin/v1/organizations", commands.OrganizationFields, "organization"),
        creation("/admin/v1/projects", commands.ProjectFields, "project"),
        listing("/admin/v1/budgets", None),
        listing("/admin/v1/limits", None),
        list_credits,
        get_account,
    ]


def _price_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    @get("/admin/v1/prices", name="list-prices")
    async def list_prices(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        page = read_page(request.scope, "model", "history")
        history = page.filters.get("history", "false")
        if history not in ("true", "false"):
            raise Problem("invalid_request", "history: expected true or false", path="history")
        result = await _run(
            rooms,
            commands.ListPrices(
                model=page.filters.get("model"), history=history == "true", after=page.after, limit=page.limit
            ),
        )
        assert isinstance(result, commands.PriceList)
        return document(page_of([shown(one) for one in result.prices], result.after))

    @delete("/admin/v1/prices/{price_id:str}", name="cancel-price", status_code=OK)
    async def cancel_price(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        return document(shown(await _run(rooms, commands.CancelPrice(id=request.path_params["price_id"]))))

    return [list_prices, cancel_price]


def _write_route(rooms: Rooms, name: str, command_type: type[Any]) -> HTTPRouteHandler:
    @post(f"/admin/v1/{name}", name=f"set-{name}", status_code=OK)
    async def write(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        command = await _read_command(rooms, request, command_type)
        return document(shown(await _run(rooms, command)))

    return write


def _model_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    @get("/admin/v1/models", name="admin-models")
    async def models(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        states = zip(readiness(rooms)["models"], rooms.registry.all(), strict=True)
        return document({"object": "list", "data": [{**state, **_configured(model)} for state, model in states]})

    @post("/admin/v1/models/{rest:path}", name="control-model", status_code=OK)
    async def control(request: Request[Any, Any, Any]) -> ASGIApp:
        """A model's id may hold slashes, so what follows it is split off here."""
        await authorize(rooms, request.scope, "admin")
        name, _, action = request.path_params["rest"].strip("/").rpartition("/")
        if not name or action not in get_args(Action):
            raise Problem("not_found", "expected /admin/v1/models/MODEL/load, or unload")
        return document(await _control(rooms, action, name))

    return [models, control]


def _configured(served: ServedModel) -> dict[str, Any]:
    settings, info = served.settings, served.info
    device = "remote" if settings.backend is None else info.device if info is not None else settings.device
    return {
        "aliases": list(settings.aliases),
        "backends": [settings.backend] if settings.backend else [target.backend for target in settings.targets],
        "device": device,
        "detail": info.detail if info is not None else "",
    }


def _tag_route(rooms: Rooms) -> HTTPRouteHandler:
    @post("/admin/v1/tags/erase", name="erase-tags", status_code=OK)
    async def erase_tags(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        asked = await _read_command(rooms, request, EraseTags)
        try:
            done = await _asked(carry_out(erase(rooms.usage, asked, rooms.settings), rooms.ledger.command))
        except CommandRejected as error:
            raise _refusal(error.rejected) from None
        return document(shown(done))

    return erase_tags


def _consumer_routes(rooms: Rooms) -> list[HTTPRouteHandler]:
    async def move(finding: Awaitable[commands.MoveCursor | commands.Rejected]) -> ASGIApp:
        found = await _asked(finding)
        return document(
            shown(_accepted(found) if isinstance(found, commands.Rejected) else await _run(rooms, found))
        )

    @get("/admin/v1/consumers", name="list-consumers")
    async def list_consumers(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        return document(page_of([shown(one) for one in await _asked(rooms.usage.consumers())], None))

    @post("/admin/v1/consumers/{consumer:str}/reset", name="reset-consumer", status_code=OK)
    async def reset(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        asked = await _read_command(rooms, request, ResetConsumer)
        return await move(resetting(rooms.usage, rooms.settings, request.path_params["consumer"], asked.to))

    @delete("/admin/v1/consumers/{consumer:str}", name="remove-consumer", status_code=OK)
    async def remove(request: Request[Any, Any, Any]) -> ASGIApp:
        await authorize(rooms, request.scope, "admin")
        return await move(removing(rooms.usage, request.path_params["consumer"]))

    return [list_consumers, reset, remove]


async def _asked(question: Awaitable[T]) -> T:
    """What the store says; a problem where it does not."""
    try:
        return await question
    except (QueryTooSlow, UsageUnavailable):
        raise Problem("ledger_unavailable", "the store of the records does not answer now") from None


async def _control(rooms: Rooms, action: Action, name: str) -> dict[str, Any]:
    served = rooms.registry.find(name)
    model = served.id if served is not None else name
    try:
        told = await ask(rooms.layout, action, model, actor="admin")
    except (NobodyThere, TimeoutError) as error:
        raise Problem("model_loading", str(error) or f"the model {name!r} was not ready in time") from None
    if told.code != "done":
        code = {"unknown": "model_not_found", "remote": "invalid_request", "failed": "model_loading"}[told.code]
        raise Problem(code, told.message)
    return {"id": model, "state": "ready" if action == "load" else "unloaded"}


async def _read_command(rooms: Rooms, request: Request[Any, Any, Any], command: type[C]) -> C:
    """A command from the body; of an empty one every field is at its default.

    Unlike in model calls, unknown fields are errors: they were meant to matter.
    """
    body = await read_body(request.scope, request.receive, max_bytes=rooms.max_body)
    found = parse_object(body) if body else {}
    known = [field.name for field in msgspec.structs.fields(command)]
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise Problem("invalid_request", f"{name}: is unknown{hint}", path=name)
    for name in _TIMES:
        if isinstance(found.get(name), str):
            found[name] = read_time(found, name)
    return read_request(found, command)


async def _run(rooms: Rooms, command: commands.Command) -> Any:
    return _accepted(unknown_model(command, rooms.settings.model_names) or await rooms.ledger.command(command))


def _accepted(result: commands.Result) -> Any:
    if isinstance(result, commands.Rejected):
        raise _refusal(result)
    return result


def _refusal(rejected: commands.Rejected) -> Problem:
    code = {"invalid": "invalid_request", "not_found": "not_found"}.get(rejected.code, "ledger_unavailable")
    return Problem(code, rejected.message, path=rejected.field)

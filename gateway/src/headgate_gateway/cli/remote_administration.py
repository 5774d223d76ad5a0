"""Admin commands to a gateway elsewhere, over its `/admin/v1` routes. May import domain and settings.

The routes take and give the ledger's own commands and answers, with money as decimal strings and times as
RFC 3339; this turns them back.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import msgspec
from headgate_plugin_api import JsonValue

from headgate_gateway.cli.options import BAD_INPUT, FAILED, fail
from headgate_gateway.domain import commands
from headgate_gateway.domain.margins import parse_margin
from headgate_gateway.domain.money import parse_amount
from headgate_gateway.domain.pricing import parse_quote
from headgate_gateway.models.control import PATIENCE_S
from headgate_gateway.settings import ADMIN_KEY_VARIABLE, SecretError, resolve_secret

TIMEOUT_S: Final = 30.0
MAX_ANSWER: Final = 64 * 1024 * 1024
_MONEY: Final = frozenset({"limit", "spent", "held", "cost", "overrun"})
_TIMES: Final = frozenset(
    {
        "archived_until",
        "starts_at",
        "ends_at",
        "created_at",
        "expires_at",
        "revoked_at",
        "effective_at",
        "first_byte_at",
        "finished_at",
        "started_at",
        "ended_at",
        "bucket",
        "at",
        "oldest_at",
    }
)
_WRITES: Final[dict[type[Any], tuple[str, type[Any]]]] = {
    commands.CreateKey: ("keys", commands.KeyCreated),
    commands.SetBudget: ("budgets", commands.Done),
    commands.SetLimit: ("limits", commands.Done),
    commands.SetPrice: ("prices", commands.PricesSet),
    commands.GrantCredit: ("credits", commands.Done),
}


class RemoteAdmin:
    """One gateway, by its address. Ends the program when it cannot be reached."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            fail(f'--url: expected an address that starts with http:// or https://, not "{url}"', BAD_INPUT)
        self._base = url.rstrip("/").removesuffix("/v1") + "/admin/v1"
        try:
            self._key = resolve_secret(f"env:{ADMIN_KEY_VARIABLE}")
        except SecretError as error:
            fail(f"--url needs the admin key: {error}", BAD_INPUT)

    def carry(self, command: commands.Command) -> commands.Result:
        """Carry out one command there."""
        if (write := _WRITES.get(type(command))) is not None:
            path, answer = write
            return self._ask("POST", f"/{path}", answer, msgspec.to_builtins(command))
        match command:
            case commands.RevokeKey():
                return self._ask("DELETE", f"/keys/{quote(command.id, safe='')}", commands.Done)
            case commands.RotateKey():
                path = f"/keys/{quote(command.id, safe='')}/rotate"
                return self._ask("POST", path, commands.KeyCreated, {"overlap_s": command.overlap_s})
            case commands.ListKeys():
                query = {"project": command.project, "after": command.after, "limit": command.limit}
                return self._list("/keys", query, "keys", commands.KeyPage)
            case commands.CreateAccount():
                stated = {"name": command.name}
                if command.kind == "project":
                    stated["organization"] = command.organization
                found = self._send("POST", f"/{command.kind}s", stated)
                if isinstance(found, commands.Rejected):
                    return found
                account = msgspec.convert(read_document(found), commands.AccountInfo)
                return commands.AccountFound(account=account)
            case commands.ListAccounts():
                query = {"after": command.after, "limit": command.limit}
                return self._list("/accounts", query, "accounts", commands.AccountPage)
            case commands.CancelPrice():
                return self._ask("DELETE", f"/prices/{quote(command.id, safe='')}", commands.PricesSet)
            case commands.ListPrices():
                history = "true" if command.history else None
                query = {
                    "model": command.model,
                    "history": history,
                    "after": command.after,
                    "limit": command.limit,
                }
                return self._list("/prices", query, "prices", commands.PriceList)
            case _:
                raise AssertionError(f"no route for {type(command).__name__}")

    def get(self, path: str, query: dict[str, Any], *, timeout_s: float = TIMEOUT_S) -> Any:
        """A document that can only be read. Ends the program when there is none."""
        asked = urlencode({name: value for name, value in query.items() if value is not None})
        found = self._send("GET", f"{path}?{asked}", None, timeout_s=timeout_s)
        if isinstance(found, commands.Rejected):
            fail(found.message, FAILED if found.code == "unavailable" else BAD_INPUT)
        return read_document(found)

    def control(self, action: str, model: str) -> dict[str, Any]:
        """Load or unload a model. Ends the program when that fails."""
        return self.do("POST", f"/models/{quote(model)}/{action}", None, timeout_s=PATIENCE_S)

    def do(self, method: str, path: str, document: Any, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """What is no command of the ledger. Ends the program when that fails."""
        found = self._send(method, path, document, timeout_s=timeout_s)
        if isinstance(found, commands.Rejected):
            fail(found.message, FAILED if found.code == "unavailable" else BAD_INPUT)
        return dict(found)

    def erase_tags(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Erase tags. Ends the program when that is refused."""
        found = self._send("POST", "/tags/erase", asked)
        if isinstance(found, commands.Rejected):
            fail(found.message, FAILED if found.code == "unavailable" else BAD_INPUT)
        return dict(found)

    def _list(self, path: str, query: dict[str, Any], field: str, answer: type[Any]) -> commands.Result:
        asked = urlencode({name: value for name, value in query.items() if value})
        found = self._send("GET", f"{path}?{asked}", None)
        if isinstance(found, commands.Rejected):
            return found
        page: commands.Result = msgspec.convert(
            {field: read_document(found["data"]), "after": found["after"]}, answer
        )
        return page

    def _ask(
        self, method: str, path: str, answer: type[Any], document: dict[str, Any] | None = None
    ) -> commands.Result:
        if document is not None:
            document.pop("type", None)
        found = self._send(method, path, document)
        if isinstance(found, commands.Rejected):
            return found
        result: commands.Result = msgspec.convert(read_document(found), answer)
        return result

    def _send(self, method: str, path: str, document: Any, *, timeout_s: float = TIMEOUT_S) -> Any:
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        body = None if document is None else json.dumps(document).encode()
        request = Request(self._base + path, body, headers, method=method)  # noqa: S310  the scheme was checked
        try:
            with urlopen(request, timeout=timeout_s) as response:  # noqa: S310
                return json.loads(response.read(MAX_ANSWER))
        except HTTPError as error:
            with error:
                return _rejected(error.code, error.read(MAX_ANSWER))
        except (URLError, OSError, ValueError) as error:
            fail(f"{self._base}: {error}")


def _rejected(status: int, body: bytes) -> commands.Rejected:
    try:
        problem = json.loads(body)
        message, field = f"{problem['detail']} ({problem['code']})", problem.get("path")
        if message.startswith(f"{field}:"):
            field = None
    except (ValueError, KeyError, TypeError):
        message, field = f"status {status}", None
    return commands.Rejected(code="unavailable" if status >= 500 else "invalid", message=message, field=field)


def _price(document: dict[str, Any]) -> dict[str, Any]:
    """A price version; in a list with its state."""
    terms = msgspec.structs.asdict(parse_quote(document["rates"]))
    margin = document["margin"]
    version = {
        **terms,
        **{name: document[name] for name in ("id", "model", "source", "scope")},
        "margin": None if margin is None else parse_margin(margin),
        "effective_us": read_document(document["effective_at"], "effective_at"),
    }
    return {"version": version, "state": document["state"]} if "state" in document else version


def read_document(value: JsonValue, name: str = "") -> Any:
    """Undo what the routes did for people: decimal strings become nano-units, RFC 3339 becomes microseconds."""
    if isinstance(value, dict):
        if name in ("tags", "detail"):  # others' names and texts
            return value
        if "effective_at" in value:
            return _price(value)
        return {field: read_document(item, field) for field, item in value.items() if field != "type"}
    if isinstance(value, list):
        return [read_document(item, name) for item in value]
    if isinstance(value, str) and name in _MONEY:
        return parse_amount(value)
    if isinstance(value, str) and name in _TIMES:
        moment = datetime.fromisoformat(value)
        return int(moment.timestamp()) * 1_000_000 + moment.microsecond
    return value

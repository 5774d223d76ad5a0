"""`client.admin`: what operators set and see. Needs a key with the scope `admin`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar, Unpack

from pydantic import BaseModel

from headgate._async.engine import AsyncEngine
from headgate._async.pages import AsyncPage
from headgate._core import request
from headgate._core.clock import microseconds
from headgate.types.admin import (
    AccountInfo,
    ConsumerInfo,
    CreditInfo,
    Done,
    KeyCreated,
    KeyFields,
    KeyInfo,
    LimitKind,
    LogEntry,
    ModelState,
    PageDocument,
    PriceInfo,
    PricesSet,
    TagsErased,
    Window,
)
from headgate.types.shared import RequestOptions

ItemT = TypeVar("ItemT", bound=BaseModel)

_ROOT = "/admin/v1"
_KEY_FIELDS = frozenset(KeyFields.__annotations__)


async def _page(engine: AsyncEngine, kind: type[ItemT], path: str, query: Mapping[str, Any]) -> AsyncPage[ItemT]:
    async def fetch(after: str) -> AsyncPage[ItemT]:
        return await _page(engine, kind, path, {**query, "after": after})

    document = await engine.get(PageDocument, path + request.encode_query(query), {})
    items = [kind.model_validate(item) for item in document.data]
    return AsyncPage(items, document.after if document.has_more else None, fetch)


class AsyncAdminKeys:
    """`client.admin.keys`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, **fields: Unpack[KeyFields]) -> KeyCreated:
        """Make a key, and its project and organization when they are missing. Its secret is shown this once."""
        body, _ = request.split(fields, _KEY_FIELDS, frozenset(), "admin.keys.create")
        request.require(body, "admin.keys.create", "project")
        expires = body.get("expires_at")
        if isinstance(expires, datetime):
            body["expires_at"] = microseconds(expires)
        return await self._engine.post(KeyCreated, f"{_ROOT}/keys", body, {}, repeatable=False)

    async def list(
        self, *, project: str | None = None, after: str | None = None, limit: int | None = None
    ) -> AsyncPage[KeyInfo]:
        """Keys, page by page; iterating goes over all of them."""
        query = {"project": project, "after": after, "limit": limit}
        return await _page(self._engine, KeyInfo, f"{_ROOT}/keys", query)

    async def revoke(self, key_id: str) -> Done:
        """End a key at once: when this returns, no worker takes it any more."""
        path = f"{_ROOT}/keys/{request.segment('key_id', key_id)}"
        return await self._engine.get(Done, path, {}, method="DELETE")

    async def rotate(self, key_id: str, *, overlap_s: int = 0) -> KeyCreated:
        """Make a key's successor; the old one works for so many seconds more."""
        path = f"{_ROOT}/keys/{request.segment('key_id', key_id)}/rotate"
        return await self._engine.post(KeyCreated, path, {"overlap_s": overlap_s}, {}, repeatable=False)


class AsyncAdminAccounts:
    """`client.admin.organizations` and `client.admin.projects`."""

    def __init__(self, engine: AsyncEngine, path: str) -> None:
        self._engine = engine
        self._path = f"{_ROOT}/{path}"

    async def list(self, *, after: str | None = None, limit: int | None = None) -> AsyncPage[AccountInfo]:
        """Accounts with their budgets and limits, page by page."""
        return await _page(self._engine, AccountInfo, self._path, {"after": after, "limit": limit})

    async def retrieve(self, account: str) -> AccountInfo:
        """One account with its budgets and limits, by its id or the name of a project or organization.

        Raises:
            NotFound: There is none.
        """
        return await self._engine.get(AccountInfo, f"{_ROOT}/accounts/{request.segment('account', account)}", {})


class AsyncAdminOrganizations(AsyncAdminAccounts):
    """`client.admin.organizations`."""

    async def create(self, name: str) -> AccountInfo:
        """Make an organization, if there is none of that name; answers with it either way."""
        return await self._engine.post(AccountInfo, self._path, {"name": name}, {})


class AsyncAdminProjects(AsyncAdminAccounts):
    """`client.admin.projects`."""

    async def create(self, name: str, *, organization: str = "default") -> AccountInfo:
        """Make a project, and its organization, if there are none of these names; answers with it either way."""
        body = {"name": name, "organization": organization}
        return await self._engine.post(AccountInfo, self._path, body, {})


class AsyncAdminBudgets(AsyncAdminAccounts):
    """`client.admin.budgets`."""

    async def set(
        self,
        account: str,
        amount: str | None,
        *,
        window: Window = "month",
        hard: bool = True,
        timezone: str = "UTC",
    ) -> Done:
        """Set, change or (None) lift a budget.

        Args:
            account: An id, or the name of a project or organization.
            amount: A decimal string.
            window: An account has at most one budget of each.
            hard: A soft budget is counted and shown, and refuses nothing.
            timezone: IANA zone whose calendar the windows follow.
        """
        body = {
            "account": account, "amount": amount, "window": window, "hard": hard, "timezone": timezone,
        }  # fmt: skip
        return await self._engine.post(Done, self._path, body, {})


class AsyncAdminLimits(AsyncAdminAccounts):
    """`client.admin.limits`."""

    async def set(self, account: str, kind: LimitKind, amount: int | None) -> Done:
        """Set or (None) lift a limit: requests or tokens per minute, or requests in flight."""
        body = {"account": account, "kind": kind, "amount": amount}
        return await self._engine.post(Done, self._path, body, {})


class AsyncAdminPrices:
    """`client.admin.prices`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(
        self, *, model: str | None = None, history: bool = False, after: str | None = None,
        limit: int | None = None,
    ) -> AsyncPage[PriceInfo]:  # fmt: skip
        """The price versions in force and those to come, overrides included, page by page.

        Args:
            model: Only this model's.
            history: Also those that are over.
            after: Where a page starts.
            limit: Versions on a page.
        """
        query = {"model": model, "history": "true" if history else None, "after": after, "limit": limit}
        return await _page(self._engine, PriceInfo, f"{_ROOT}/prices", query)

    async def set(
        self, model: str, rates: Mapping[str, Any] | None, *, scope: str = "",
        effective_from: datetime | None = None, any_model: bool = False,
    ) -> PricesSet:  # fmt: skip
        """Make a new price version; in force for every request admitted from then on.

        Args:
            model: The model's id.
            rates: Decimal strings by rate: `{"input": "0.15", "output": "0.60"}`; with `minimum`, and tiers in
                `context` or `graduated`, where there are any. Or `{"margin": "20"}`: percent on what everyone
                pays, for everyone on what config or plugins say. None withdraws the price.
            scope: A key's or organization's id or name for an override.
            effective_from: When it begins; now by default, never in the past.
            any_model: Take a model that the gateway's config does not name (yet).
        """
        body: dict[str, Any] = {"model": model, "rates": rates, "scope": scope}
        if effective_from is not None:
            body["effective_from"] = microseconds(effective_from)
        if any_model:
            body["any_model"] = True
        return await self._engine.post(PricesSet, f"{_ROOT}/prices", body, {})

    async def cancel(self, price_id: str) -> PricesSet:
        """Let a planned price not begin; one more version says what will be in force instead.

        Raises:
            NotFound: There is no such version.
            InvalidRequest: It has begun: history stays as it is.
        """
        path = f"{_ROOT}/prices/{request.segment('price_id', price_id)}"
        return await self._engine.get(PricesSet, path, {}, method="DELETE")


class AsyncAdminCredits:
    """`client.admin.credits`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(self, *, after: str | None = None, limit: int | None = None) -> AsyncPage[CreditInfo]:
        """Grants that have not expired, page by page; an account's in the order in which they burn.

        Args:
            after: Where a page starts.
            limit: Accounts that a page looks at; it has all the grants of each.
        """
        return await _page(self._engine, CreditInfo, f"{_ROOT}/credits", {"after": after, "limit": limit})

    async def grant(
        self,
        account: str,
        amount: str,
        *,
        note: str = "",
        priority: int = 100,
        expires_at: datetime | None = None,
    ) -> Done:
        """Prepaid credit beside what was granted before; a negative amount takes credit back.

        Args:
            account: An id, or the name of a project or organization.
            amount: A decimal string.
            note: For people.
            priority: Lower ones burn first; then what expires first, then what is oldest.
            expires_at: When what is left of it is gone.
        """
        body: dict[str, Any] = {"account": account, "amount": amount, "note": note, "priority": priority}
        if expires_at is not None:
            body["expires_at"] = microseconds(expires_at)
        return await self._engine.post(Done, f"{_ROOT}/credits", body, {}, repeatable=False)


class AsyncAdminTags:
    """`client.admin.tags`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def erase(
        self, tags: Mapping[str, str] | None = None, *, project: str | None = None,
        before: datetime | None = None,
    ) -> TagsErased:  # fmt: skip
        """Erase the tags of requests for good; what they cost stays.

        Args:
            tags: Of requests that have all of these.
            project: Only of this project's: an id or a name.
            before: Only of those admitted before then; may stand without tags.
        """
        asked = {"project": project, "before": None if before is None else microseconds(before)}
        body: dict[str, Any] = {"tags": dict(tags or {}), **{k: v for k, v in asked.items() if v is not None}}
        erased = 0
        while True:
            done = await self._engine.post(TagsErased, f"{_ROOT}/tags/erase", body, {})
            erased += done.erased
            if done.after is None:
                return done.model_copy(update={"erased": erased})
            body["after"] = done.after


class AsyncAdminModels:
    """`client.admin.models`: what the gateway's config names, and what it is doing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(self) -> AsyncPage[ModelState]:
        """Every model's state."""
        return await _page(self._engine, ModelState, f"{_ROOT}/models", {})

    async def load(self, model: str, **options: Unpack[RequestOptions]) -> ModelState:
        """Start a model that runs here, and wait until it is ready.

        Raises:
            ModelOverloaded: It was not ready in time, or failed; the message says why.
        """
        return await self._control(model, "load", options)

    async def unload(self, model: str, **options: Unpack[RequestOptions]) -> ModelState:
        """Stop a model that runs here, and free its memory."""
        return await self._control(model, "unload", options)

    async def _control(self, model: str, action: str, options: Mapping[str, Any]) -> ModelState:
        path = f"{_ROOT}/models/{request.segment('model', model)}/{action}"
        return await self._engine.post(ModelState, path, {}, options)


class AsyncAdminConsumers:
    """`client.admin.consumers`: plugins that take usage records."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(self) -> AsyncPage[ConsumerInfo]:
        """How far each has come."""
        return await _page(self._engine, ConsumerInfo, f"{_ROOT}/consumers", {})

    async def reset(self, consumer: str, to: Literal["beginning", "now"] | str | int) -> Done:
        """Let a consumer go on elsewhere.

        Args:
            consumer: Its name.
            to: `beginning`, `now`, or the record that it is given next: a request id, or its number (`seq`).

        Raises:
            NotFound: There is no such consumer.
        """
        path = f"{_ROOT}/consumers/{request.segment('consumer', consumer)}/reset"
        return await self._engine.post(Done, path, {"to": str(to)}, {})

    async def remove(self, consumer: str) -> Done:
        """Forget how far a consumer has come, when its plugin is gone for good.

        Raises:
            NotFound: There is no such consumer.
        """
        path = f"{_ROOT}/consumers/{request.segment('consumer', consumer)}"
        return await self._engine.get(Done, path, {}, method="DELETE")


class AsyncAdminLog:
    """`client.admin.log`: the audit log."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(self, *, after: str | None = None, limit: int | None = None) -> AsyncPage[LogEntry]:
        """What was done by whom, oldest first, page by page."""
        return await _page(self._engine, LogEntry, f"{_ROOT}/log", {"after": after, "limit": limit})


class AsyncAdmin:
    """`client.admin`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.keys = AsyncAdminKeys(engine)
        self.organizations = AsyncAdminOrganizations(engine, "organizations")
        self.projects = AsyncAdminProjects(engine, "projects")
        self.budgets = AsyncAdminBudgets(engine, "budgets")
        self.limits = AsyncAdminLimits(engine, "limits")
        self.prices = AsyncAdminPrices(engine)
        self.credits = AsyncAdminCredits(engine)
        self.tags = AsyncAdminTags(engine)
        self.models = AsyncAdminModels(engine)
        self.consumers = AsyncAdminConsumers(engine)
        self.log = AsyncAdminLog(engine)

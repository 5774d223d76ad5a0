"""What a key may use and what it used: `client.models`, `client.limits`, `client.usage`."""

from __future__ import annotations

from datetime import datetime
from typing import Unpack, cast

from headgate._async.engine import AsyncEngine
from headgate._core import reconcile, request
from headgate.types.limits import AccountLimits
from headgate.types.models import Model, ModelList
from headgate.types.shared import RequestOptions
from headgate.types.usage import Reconciliation, UsageQuery, UsageRecord, UsageReport, UsageRow


class AsyncModels:
    """`client.models`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(self, **options: Unpack[RequestOptions]) -> ModelList:
        """The models that the key may use."""
        return await self._engine.get(ModelList, "/v1/models", options)

    async def retrieve(self, model: str, **options: Unpack[RequestOptions]) -> Model:
        """One model.

        Raises:
            NotFound: There is none of that id, or the key may not see it.
        """
        return await self._engine.get(Model, "/v1/models/" + request.segment("model", model), options)


class AsyncLimits:
    """`client.limits`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def retrieve(self, **options: Unpack[RequestOptions]) -> AccountLimits:
        """The limits and budgets that stand over the key, and their state."""
        return await self._engine.get(AccountLimits, "/v1/limits", options)


class AsyncUsage:
    """`client.usage`: what the ledger has."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def query(self, **query: Unpack[UsageQuery]) -> UsageReport:
        """A page of records, or totals when `group_by` or `bucket` is given."""
        return await self._engine.get(UsageReport, "/v1/usage" + request.encode_query(query), {})

    async def retrieve(self, request_id: str, **options: Unpack[RequestOptions]) -> UsageRecord:
        """The record of one request.

        Raises:
            NotFound: The ledger has none of that id for this key.
        """
        path = "/v1/usage/" + request.segment("request_id", request_id)
        return await self._engine.get(UsageRecord, path, options)

    async def records(self, **query: Unpack[UsageQuery]) -> list[UsageRow]:
        """All records of a query, page after page."""
        rows: list[UsageRow] = []
        page = dict(query)
        while True:
            report = await self.query(**cast("UsageQuery", page))
            rows.extend(report.data)
            cursor = reconcile.next_page(report)
            if cursor is None or cursor == page.get("after"):
                return rows
            page["after"] = cursor

    async def reconcile(self, since: datetime | str) -> Reconciliation:
        """Compare what this client saw with what the ledger has, request by request.

        The client remembers its last 10,000 calls; `forgotten` counts those before.

        Args:
            since: From when on; calls that this client made earlier show up as missing there.
        """
        rows = await self.records(since=since)
        journal = self._engine.journal
        return reconcile.compare(journal.rows(), rows, forgotten=journal.forgotten)

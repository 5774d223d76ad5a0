"""`/admin/v1/consumers`: a cursor is begun as the outbox would, and asked for as operators do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from headgate_gateway.ledger.admin_client import admin_client

from tests.processes import ADMIN_KEY

RESET = "/admin/v1/consumers/billing/reset"


@pytest.fixture(scope="module")
def begun(gateway: Any) -> None:
    async def begin() -> None:
        async with admin_client(gateway.settings.layout, actor="outbox") as ledger:
            await ledger.advance("billing", 0, None)

    asyncio.run(begin())


@pytest.mark.parametrize(
    ("body", "path", "told"),
    [
        ({}, "to", "to"),
        ({"to": 5}, "to", "to"),
        ({"to": "yesterday"}, "to", "expected beginning, now"),
        ({"to": "-1"}, "to", "expected beginning, now"),
        ({"to": "9" * 40}, "to", "expected beginning, now"),
        ({"to": "\0"}, "to", "expected beginning, now"),
        ({"too": "now"}, "too", "did you mean 'to'"),
    ],
)
def test_where_a_consumer_cannot_go_is_named(gateway: Any, begun: None, body: Any, path: str, told: str) -> None:
    with gateway.client(ADMIN_KEY) as admin:
        answer = admin.post(RESET, content=json.dumps(body))
    assert answer.status_code == 400, answer.text
    assert answer.json()["path"] == path
    assert told in answer.json()["detail"]


@pytest.mark.parametrize("name", ["nobody", "a%20b", "%F0%9F%9A%B0", "%00", "x" * 300])
def test_a_consumer_that_is_none_is_not_found(gateway: Any, begun: None, name: str) -> None:
    with gateway.client(ADMIN_KEY) as admin:
        for answer in (
            admin.post(f"/admin/v1/consumers/{name}/reset", json={"to": "now"}),
            admin.delete(f"/admin/v1/consumers/{name}"),
        ):
            assert answer.status_code == 404, answer.text


def test_consumers_are_for_operators(gateway: Any, begun: None) -> None:
    with gateway.client(gateway.key()) as client:
        for answer in (
            client.get("/admin/v1/consumers"),
            client.post(RESET, json={"to": "now"}),
            client.delete("/admin/v1/consumers/billing"),
        ):
            assert answer.status_code == 403, answer.text
    with gateway.client(ADMIN_KEY) as admin:
        found = {one["name"]: one for one in admin.get("/admin/v1/consumers").json()["data"]}
    assert (found["billing"]["position"], found["billing"]["error"]) == (0, "")

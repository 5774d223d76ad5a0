"""A hard budget under many clients and workers: worth exactly N requests, exactly N succeed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import openai

from tests.deployment import ECHO

REQUESTS = 100
CLIENTS = 64
WORDS = "one two three four five"
COST = 15_000
"""Nano-units of one request: five words in at 1,000 each and five out at 2,000."""


async def spend_until_refused(client: openai.AsyncOpenAI, codes: Counter[str]) -> int:
    """Ask until the budget says 402; a 429 is tried again, as the answer tells. Returns how many succeeded."""
    succeeded = 0
    while True:
        try:
            answer = await client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": WORDS}], max_tokens=5
            )
        except openai.RateLimitError as refusal:
            codes[refusal.body["code"] if isinstance(refusal.body, dict) else "?"] += 1
            assert float(refusal.response.headers["retry-after"]) > 0
            await asyncio.sleep(0.05)
            continue
        except openai.APIStatusError as refusal:
            assert refusal.status_code == 402, refusal.body
            assert refusal.response.headers["x-should-retry"] == "false"
            codes[refusal.body["code"] if isinstance(refusal.body, dict) else "?"] += 1
            return succeeded
        assert answer.choices[0].message.content == WORDS
        succeeded += 1


async def spend_by_all(addresses: list[str], key: str) -> None:
    """As many clients as there are, spread over the addresses; together they succeed as often as is paid for."""
    codes: Counter[str] = Counter()
    clients = [
        openai.AsyncOpenAI(base_url=f"{addresses[n % len(addresses)]}/v1", api_key=key, max_retries=0)
        for n in range(CLIENTS)
    ]
    try:
        succeeded = await asyncio.gather(*(spend_until_refused(client, codes) for client in clients))
    finally:
        for client in clients:
            await client.close()
    assert sum(succeeded) == REQUESTS
    assert codes["budget_exhausted"] == CLIENTS
    assert set(codes) <= {"budget_exhausted", "budget_in_flight"}


def check_books(deployment: Any) -> None:
    report = deployment.audit()
    assert report["ok"], report
    assert report["checked"]["usage_records"] == REQUESTS
    totals = deployment.command("usage")["totals"]
    assert sum(round(float(row["cost"]) * 1e9) for row in totals) == REQUESTS * COST
    (budget,) = deployment.command("budgets", "list")["budgets"]
    assert (budget["spent"], budget["held"], budget["limit"]) == ("0.0015", "0", "0.0015")


async def test_64_clients_on_2_workers_spend_a_budget_to_the_last_nano(gateway: Any) -> None:
    deployment = gateway(workers=2)
    await spend_by_all([deployment.url], deployment.key(budget="0.0015/total"))
    check_books(deployment)
    assert deployment.stop() == 0


async def test_64_clients_on_2_nodes_of_one_database_spend_a_budget_to_the_last_nano(
    gateway: Any, database: str
) -> None:
    config = f'pepper = "file:../pepper"\n[store]\nurl = "{database}"\n{ECHO}'
    nodes = [gateway(config) for _ in range(2)]
    key = nodes[0].key(budget="0.0015/total")
    spending = asyncio.create_task(spend_by_all([node.url for node in nodes], key))
    while not spending.done():
        report = await asyncio.to_thread(nodes[1].audit)
        assert report["ok"], report
    await spending
    check_books(nodes[1])
    assert all(node.stop() == 0 for node in nodes)
    check_books(nodes[0])

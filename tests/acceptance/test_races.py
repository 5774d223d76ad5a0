"""Budgets under races: 64 clients on 4 workers, at each level, at prices drawn at random. Nothing is overrun.

On PostgreSQL the workers are those of two nodes.
"""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from typing import Any

import openai
import pytest

REQUESTS = 100
CLIENTS = 64
WORKERS = 4
KEYS = 8
WORDS = "one two three four five"
TOKENS = 5
PER_MILLION = 10**6


def amount(nanos: int) -> str:
    return f"{nanos // 10**9}.{nanos % 10**9:09d}"


def nano(text: str) -> int:
    return int(Decimal(text) * 10**9)


async def spend(client: openai.AsyncOpenAI, costs: list[int]) -> None:
    """Ask until the budget refuses for good; a 429 is tried again, as the answer tells."""
    while True:
        try:
            answer = await client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": WORDS}], max_tokens=TOKENS
            )
        except openai.RateLimitError as refusal:
            assert isinstance(refusal.body, dict)
            assert refusal.body["code"] == "budget_in_flight"
            await asyncio.sleep(0.05)
            continue
        except openai.APIStatusError as refusal:
            assert refusal.status_code == 402, refusal.body
            return
        assert answer.choices[0].message.content == WORDS
        assert answer.usage is not None
        costs.append(nano(answer.usage.model_extra["cost"]))  # type: ignore[index]


LEVELS = ["key", "project", "organization"]


@pytest.mark.parametrize(("level", "nodes"), [*((level, 1) for level in LEVELS), ("organization", 2)])
async def test_a_budget_worth_100_requests_is_never_overrun_and_used_up(
    gateway: Any, level: str, nodes: int, request: pytest.FixtureRequest
) -> None:
    draw = random.Random(level)
    rates = draw.randrange(1, 10**12), draw.randrange(1, 10**12)  # nano-units per million tokens
    held = -(-TOKENS * sum(rates) // PER_MILLION)
    budget = REQUESTS * held + draw.randrange(held)
    price = f"price = {{ input = '{amount(rates[0])}', output = '{amount(rates[1])}' }}"
    config = f'[[models]]\nid = "echo"\ntask = "chat"\nbackend = "echo"\noptions = {{ delay_ms = 2 }}\n{price}\n'
    if nodes > 1:
        database = request.getfixturevalue("database")
        config = f'pepper = "file:../pepper"\n[store]\nurl = "{database}"\n{config}'
    deployments = [gateway(config, workers=WORKERS // nodes) for _ in range(nodes)]
    deployment = deployments[-1]
    keys = [deployment.key() for _ in range(1 if level == "key" else KEYS)]
    accounts = {a["kind"]: a["id"] for a in deployment.command("accounts", "list")["accounts"]}
    deployment.command("budgets", "set", accounts[level], f"{amount(budget)}/total")
    clients = [
        openai.AsyncOpenAI(
            base_url=f"{deployments[number % nodes].url}/v1",
            api_key=keys[number // nodes % len(keys)],
            max_retries=0,
        )
        for number in range(CLIENTS)
    ]
    costs: list[int] = []
    try:
        await asyncio.gather(*(spend(client, costs) for client in clients))
    finally:
        for client in clients:
            await client.close()
    totals = deployment.command("usage")["totals"]
    spent = sum(nano(row["cost"]) for row in totals)
    assert spent == sum(costs)
    assert spent <= budget
    assert budget - spent < held, "an affordable request was refused for good"
    assert len(costs) >= REQUESTS
    report = deployment.audit()
    assert report["ok"], report

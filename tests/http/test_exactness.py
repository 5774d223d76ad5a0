"""Many stock clients on two workers against a budget worth exactly so many requests; workers that die."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import openai
import pytest

PRICE = "1"
WORDS = 4
WORTH = 100
CLIENTS = 64


@pytest.fixture
def pair(run_gateway: Any) -> Any:
    """Two workers on one socket."""
    models = [{"id": "echo", "task": "chat", "backend": "echo", "price": {"input": PRICE, "output": PRICE}}]
    with run_gateway({"models": models}, workers=2) as started:
        yield started


async def one_client(url: str, key: str, requests: int, outcomes: list[int]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        for _ in range(requests):
            while True:
                try:
                    await client.chat.completions.create(
                        model="echo", messages=[{"role": "user", "content": "a b c d"}], max_tokens=WORDS
                    )
                    outcomes.append(200)
                except openai.APIConnectionError:
                    outcomes.append(0)
                except openai.APIStatusError as error:
                    outcomes.append(error.status_code)
                    if error.status_code == 429:
                        await asyncio.sleep(0.01)
                        continue
                break


async def test_exactly_as_many_succeed_as_the_budget_is_worth(pair: Any) -> None:
    budget = f"{WORTH * 2 * WORDS / 1_000_000:.6f}"
    key = await asyncio.to_thread(pair.key, budget=f"{budget}/total")
    outcomes: list[int] = []
    await asyncio.gather(*(one_client(pair.url, key, 3, outcomes) for _ in range(CLIENTS)))
    assert outcomes.count(200) == WORTH
    assert set(outcomes) <= {200, 402, 429}
    listed = (await asyncio.to_thread(pair.admin, "GET", "keys"))["data"]
    (found,) = listed[0]["account"]["budgets"]
    assert (found["spent"], found["held"]) == (found["limit"], "0")
    report = await asyncio.to_thread(pair.admin, "GET", "audit?full=true")
    assert report["ok"] is True, report


async def test_a_worker_killed_under_load_loses_and_doubles_nothing(pair: Any, wait_for: Any) -> None:
    key = await asyncio.to_thread(pair.key, budget="1/total")
    outcomes: list[int] = []
    load = asyncio.gather(*(one_client(pair.url, key, 12, outcomes) for _ in range(24)))
    while len(outcomes) < 40:
        await asyncio.sleep(0.005)
    await asyncio.to_thread(pair.stop, "worker-1", signal.SIGKILL)
    await asyncio.to_thread(pair.start_worker, 1)
    async with asyncio.timeout(60):
        await load
    good = outcomes.count(200)
    assert good > 100

    def settled() -> Any:
        (found,) = pair.admin("GET", "keys")["data"][0]["account"]["budgets"]
        return found["held"] == "0" and found

    found = await asyncio.to_thread(wait_for, settled, "the dead worker's holds end")
    records = (await asyncio.to_thread(pair.admin, "GET", "usage?group_by=outcome"))["data"]
    counted = {total["outcome"]: total["requests"] for total in records}
    assert counted["ok"] >= good, "an answer that a client received in full is a record on disk"
    nano = round(float(found["spent"]) * 1_000_000)
    assert good * 2 * WORDS <= nano <= counted["ok"] * 2 * WORDS
    report = await asyncio.to_thread(pair.admin, "GET", "audit?full=true")
    assert report["ok"] is True, report

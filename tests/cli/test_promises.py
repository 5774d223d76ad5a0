"""The first two promises, on everything at once: real processes, stock `openai` clients, `kill -9`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import openai

CONFIG = """
[server]
workers = 2
[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = { input = "1", output = "1" }
"""


async def ask(client: openai.AsyncOpenAI, told: Counter[str]) -> str:
    """One request; its outcome is counted and returned."""
    try:
        await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "Hello, gate!"}], max_tokens=2
        )
        outcome = "ok"
    except openai.APIStatusError as error:
        outcome = f"{error.status_code} {error.code}"
    except openai.APIConnectionError:
        outcome = "connection lost"
    told[outcome] += 1
    return outcome


def start(folder: Path, serve: Any, headgate: Any, budget: str) -> tuple[Any, str]:
    (folder / "headgate.toml").write_text(CONFIG)
    gateway = serve(folder).wait()
    return gateway, json.loads(headgate(folder, "keys", "create", "-p", "p", "--budget", budget, "--json"))["key"]


def client_of(gateway: Any, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=f"{gateway.address}/v1", max_retries=0, timeout=30)


async def test_a_budget_worth_100_requests_is_100_requests(tmp_path: Path, serve: Any, headgate: Any) -> None:
    gateway, key = await asyncio.to_thread(start, tmp_path, serve, headgate, "0.0004/total")
    told: Counter[str] = Counter()

    async def until_spent() -> None:
        async with client_of(gateway, key) as client:
            while (outcome := await ask(client, told)) != "402 budget_exhausted":
                assert outcome in ("ok", "429 budget_in_flight", "402 request_exceeds_budget"), outcome
                await asyncio.sleep(0.01)

    await asyncio.gather(*(until_spent() for _ in range(64)))
    assert told["ok"] == 100
    (budget,) = json.loads(headgate(tmp_path, "budgets", "list", "--json"))["budgets"]
    assert (budget["spent"], budget["held"], budget["limit"]) == ("0.0004", "0", "0.0004")
    assert json.loads(headgate(tmp_path, "audit", "--json"))["ok"] is True


async def test_killing_processes_under_load_loses_no_charge(tmp_path: Path, serve: Any, headgate: Any) -> None:
    gateway, key = await asyncio.to_thread(start, tmp_path, serve, headgate, "1/total")
    told: Counter[str] = Counter()
    enough = asyncio.Event()

    async def load() -> None:
        async with client_of(gateway, key) as client:
            while not enough.is_set():
                await ask(client, told)

    clients = [asyncio.create_task(load()) for _ in range(16)]
    for name in ("worker 0", "echo/0", "worker 1"):
        goal = told["ok"] + 50
        while told["ok"] < goal:
            await asyncio.sleep(0.01)
        os.kill(gateway.child(name)["pid"], signal.SIGKILL)
        await asyncio.to_thread(gateway.until, lambda name=name: gateway.child(name).get("restarts") == 1)
        await asyncio.to_thread(gateway.until, lambda name=name: gateway.child(name)["state"] == "ready")
    goal = told["ok"] + 50
    while told["ok"] < goal:
        await asyncio.sleep(0.01)
    enough.set()
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    assert gateway.stop() == 0
    report = json.loads(headgate(tmp_path, "audit", "--json"))
    assert report["ok"] is True, report
    billed = json.loads(headgate(tmp_path, "usage", "--by", "outcome", "--json"))
    ok = sum(total["records"] for total in billed["totals"] if total["outcome"] == "ok")
    assert ok >= told["ok"], "an answer that a client has is a record on disk"

"""What money must survive: random kills and crash points, in short; `benchmarks.money_errors` at length."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.crashpoints import POINTS

from benchmarks.money.crashes import die_everywhere
from benchmarks.money.headgate import Headgate
from benchmarks.money.results import Result
from benchmarks.money.subject import Victim
from benchmarks.money_errors import drive, truthful_upstream
from benchmarks.postgres_server import Server

SEED = 11
PATIENCE_S = 400
Making = Callable[..., Awaitable[Headgate]]


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return tmp_path / "truth.jsonl"


@pytest.fixture
def made(tmp_path: Path, truth: Path) -> Iterator[Making]:
    """Makes a deployment at the truthful upstream; it does not serve yet."""
    with contextlib.ExitStack() as stack:

        async def make(**more: Any) -> Headgate:
            upstream = stack.enter_context(truthful_upstream(truth))
            draw = random.Random(SEED)
            deployment = await asyncio.to_thread(lambda: Headgate(tmp_path, upstream, draw=draw, **more))
            stack.callback(deployment.kill_everything)
            return deployment

        yield make


def clean(result: Result) -> bool:
    assert result.audit is None
    assert result.findings.all() == []
    return True


async def survives(headgate: Headgate, truth: Path, victims: Sequence[Victim]) -> None:
    headgate.start()
    result = await drive(headgate, truth, seed=SEED, victims=victims, clients=24, every_s=1.0)
    assert clean(result)
    assert set(result.kills) == set(victims)
    assert result.complete > 50


@pytest.mark.timeout(PATIENCE_S)
async def test_no_charge_is_lost_doubled_or_wrong_under_kills(made: Making, truth: Path) -> None:
    victims: list[Victim] = [
        "worker",
        "reprice",
        "ledger",
        "engine",
        "rotate",
        "group",
        "reload",
        "ledger",
        "worker",
    ]
    await survives(await made(), truth, victims)


@pytest.mark.timeout(PATIENCE_S)
async def test_nor_on_two_nodes_whose_database_is_killed_too(
    made: Making, truth: Path, postgres_server: Server
) -> None:
    victims: list[Victim] = ["ledger", "reprice", "database", "rotate", "node", "worker"]
    await survives(await made(workers=1, nodes=2, database=postgres_server), truth, victims)


@pytest.mark.timeout(PATIENCE_S)
async def test_dying_at_any_crash_point_leaves_three_views_that_agree(made: Making, truth: Path) -> None:
    result = await die_everywhere(await made(), truth, seed=SEED)
    assert clean(result)
    assert set(result.kills) == set(POINTS)

"""What money must survive: random kills and crash points, in short; `benchmarks.money_errors` at length."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from headgate_gateway.crashpoints import POINTS

from benchmarks.money.crashes import die_everywhere
from benchmarks.money.headgate import Headgate
from benchmarks.money.results import Result
from benchmarks.money_errors import drive, truthful_upstream

SEED = 11
PATIENCE_S = 400


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return tmp_path / "truth.jsonl"


@pytest.fixture
def headgate(tmp_path: Path, truth: Path) -> Iterator[Headgate]:
    with truthful_upstream(truth) as upstream:
        deployment = Headgate(tmp_path, upstream, workers=2, draw=random.Random(SEED))
        yield deployment
        deployment.kill_everything()


def clean(result: Result) -> bool:
    assert result.audit is None
    assert result.findings.all() == []
    return True


@pytest.mark.timeout(PATIENCE_S)
async def test_no_charge_is_lost_doubled_or_wrong_under_random_kills(headgate: Headgate, truth: Path) -> None:
    headgate.start()
    result = await drive(headgate, truth, seed=SEED, seconds=12, requests=None, kill=True, clients=24)
    assert clean(result)
    assert sum(result.kills.values()) >= 3
    assert result.complete > 50


@pytest.mark.timeout(PATIENCE_S)
async def test_dying_at_any_crash_point_leaves_three_views_that_agree(headgate: Headgate, truth: Path) -> None:
    result = await die_everywhere(headgate, truth, seed=SEED)
    assert clean(result)
    assert set(result.kills) == set(POINTS)

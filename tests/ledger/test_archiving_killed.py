"""Archiving killed anywhere: nothing is lost, nothing is there twice, and running it again ends it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.cli.times import exactly
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain import commands as c
from headgate_gateway.layout import Layout
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.audit import audit

from tests.ledger.test_processes import House

HEADGATE = [sys.executable, "-m", "headgate_gateway.cli"]
DAY = 24 * 3600 * 1_000_000
CONFIG = '[server]\ndata_dir = "data"\n[[models]]\nid = "m"\ntask = "chat"\nbackend = "echo"\n'


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, bench_class: Any) -> Path:
    """A deployment with four days, each sealed, of the week before this one."""
    folder: Path = tmp_path_factory.mktemp("sealed")
    (folder / "headgate.toml").write_text(CONFIG)
    bench = bench_class(folder / "data")
    bench.clock.us = SystemClock().now_us() - 10 * DAY
    bench.price(input="0.0002", output="0.0015")
    key = bench.key("0.5/day")
    for _ in range(4):
        for n in range(60):
            bench.settle(bench.admit(key, 100, prompt=50).request_id, n, prompt=50)
            bench.run(wire.Void(1, bench.admit(key, 7).request_id))
        bench.do(c.SetBudget(account="p", amount="0.5", window="month"))
        bench.clock.us += DAY
        bench.seal()
    bench.core.close()
    return folder


def run(folder: Path, *arguments: str, crash: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HEADGATE, *arguments], cwd=folder, capture_output=True, text=True,
        timeout=100, check=False, env={**os.environ, "HEADGATE_CRASH_AT": crash},
    )  # fmt: skip


def requests(folder: Path) -> list[tuple[str, int]]:
    """Every request that ended and what it cost, in the store and in its files, each once for each place."""
    found: set[tuple[str, int]] = set()
    for path in (folder / "data/headgate.sqlite", *(folder / "data/archive").glob("*.sqlite")):
        with contextlib.closing(sqlite3.connect(path)) as db:
            rows = db.execute(
                "SELECT request_id, cost FROM usage_records UNION ALL SELECT request_id, 0 FROM voids"
            ).fetchall()
        assert len(set(rows)) == len(rows)
        found |= set(rows)
    assert len({request_id for request_id, _ in found}) == len(found)
    return sorted(found)


ORDERS = [
    "archive.before_whole:1", "archive.whole:2", "archive.kept:2", "ledger.after_commit:3", "ledger.in_sweep:1",
    "ledger.swept:3",
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_it_is_ended_by_running_it_again(sealed: Path, tmp_path: Path, order: str) -> None:
    folder = tmp_path / "deployment"
    shutil.copytree(sealed, folder)
    layout = Layout.of(folder / "data")
    before = requests(folder)
    moment = exactly(SystemClock().now_us() - 2 * DAY)
    killed = run(folder, "archive", "--before", moment, crash=order)
    assert killed.returncode == -signal.SIGKILL, (killed.stdout, killed.stderr)
    for full in (False, True):
        report = audit(layout, full=full)
        assert report.ok, report.first_difference
    assert requests(folder) == before
    again = run(folder, "archive", "--before", moment, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["deleted"]
    assert requests(folder) == before
    assert sorted(path.name for path in (folder / "data/archive").iterdir()) == [
        f"headgate-00000{n}.sqlite" for n in (1, 2, 3, 4)
    ]
    whole = run(folder, "audit", "--full", "--archive", "data/archive", "--json")
    checked = json.loads(whole.stdout)
    assert checked["ok"], checked["first_difference"]
    assert checked["checked"]["usage_records"] == checked["checked"]["voids"] == 240
    with contextlib.closing(sqlite3.connect(layout.store)) as db:
        assert db.execute("SELECT count(*) FROM usage_records").fetchone() == (1,)


def test_the_ledger_that_serves_goes_on_where_it_was_killed(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies while rows leave, under the command that waits for them."""
    folder = tmp_path / "deployment"
    shutil.copytree(sealed, folder)
    before = requests(folder)
    house = House(folder / "data")
    monkeypatch.setenv("HEADGATE_CRASH_AT", "ledger.swept:3")
    house.start()
    monkeypatch.delenv("HEADGATE_CRASH_AT")
    moment = exactly(SystemClock().now_us() - 2 * DAY)
    command = [*HEADGATE, "archive", "--before", moment, "--json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as archiving:
        assert house.ledger is not None
        assert house.ledger.wait(60) == -signal.SIGKILL
        assert requests(folder) == before
        house.start()
        out, _ = archiving.communicate(timeout=60)
    assert json.loads(out)["deleted"]
    assert house.stop() == 0
    assert requests(folder) == before
    for archived in (None, folder / "data/archive"):
        report = audit(house.layout, full=True, archived=archived)
        assert report.ok, report.first_difference


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("archive", "--before", "soon"), "--before: expected a date"),
        (("archive", "--before", "2999-01-01"), "cannot be archived yet: idempotency keys"),
        (("archive", "--before", "2020-01-01", "--out", "headgate.toml"), "nothing more is archived: "),
        (("audit", "--archive", "data"), "--archive: goes with --full"),
        (("audit", "--full", "--archive", "data", "--url", "http://localhost"), "--archive: goes with --full"),
    ],
)
def test_what_cannot_be_is_said(sealed: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(sealed, *arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert not done.stdout

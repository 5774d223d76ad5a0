"""The ring of recent changes: the tables may lag behind it, and nothing shows; not after a crash, not at rest."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.audit import audit
from headgate_gateway.ledger.book import Writes
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.store import recent
from headgate_gateway.ledger.store.contract import StoreRefused
from headgate_gateway.ledger.store.sqlite import HEAD, SqliteStore, revision

from tests.ledger.older import make_older


def rows(bench: Any, sql: str) -> list[tuple[Any, ...]]:
    """What the file has, read by somebody else."""
    db = sqlite3.connect(bench.layout.store)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def killed(bench: Any, bench_class: type[Any], folder: Path) -> Any:
    """The same ledger after a `kill -9`: started on what lies on the disk, without having been closed."""
    shutil.copytree(bench.layout.data_dir, folder)
    bench.core.close()
    again = bench_class(folder)
    again.n, again.clock.us, again.ids = bench.n, bench.clock.us, bench.ids
    return again


def memory(bench: Any) -> Any:
    """All that the ledger knows of windows, rates and holds."""
    state = bench.core.state
    return (
        {id_: (w.limit, w.hard, w.spent, w.held, w.cap, w.version) for id_, w in state.windows.items()},
        {id_: (a.requests and a.requests.tat, a.tokens and a.tokens.tat) for id_, a in state.accounts.items()},
        {id_: (hold.held, hold.steps, len(hold.parts)) for id_, hold in state.holds.items()},
    )


@pytest.mark.parametrize("seed", range(2))
def test_a_crash_at_any_batch_loses_nothing(
    seed: int, bench_class: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "SLOTS", 4)
    choose = random.Random(seed)
    bench = bench_class(tmp_path / "first")
    bench.price()
    keys = [bench.key("1/month", rpm=600) for _ in range(6)]
    open_: list[str] = []
    for step in range(60):
        action = choose.random()
        if action < 0.5 or not open_:
            open_.append(bench.admit(choose.choice(keys), 2000, stream=True, least=1).request_id)
        elif action < 0.6:
            bench.run(wire.Extend(1, choose.choice(open_), 1500))
        elif action < 0.7:
            bench.run(wire.Void(1, open_.pop(choose.randrange(len(open_)))))
        elif action < 0.75:
            bench.do(c.SetBudget(account=choose.choice(keys), amount="0.5", window="month"))
        else:
            bench.settle(open_.pop(choose.randrange(len(open_))), 100)
        if step % 9 == 8:
            known = memory(bench)
            report = bench.audit()
            assert report.ok, report.first_difference
            bench = killed(bench, bench_class, tmp_path / f"after-{step}")
            assert memory(bench) == known
    bench.core.close()


def test_a_closed_store_has_everything_in_its_tables(new_bench: Callable[[str], Any]) -> None:
    bench = new_bench("rest")
    bench.price()
    key = bench.key("1/month", rpm=10)
    bench.settle(bench.admit(key, 30).request_id, 20)
    held = bench.admit(key, 7)
    assert rows(bench, "SELECT * FROM holds") == []
    bench.core.close()
    assert rows(bench, "SELECT * FROM recent") == []
    assert rows(bench, "SELECT request_id FROM holds") == [(held.request_id,)]
    assert rows(bench, "SELECT spent, held FROM windows") == [(20, 7)]
    assert rows(bench, "SELECT account FROM rates") == [(key,)]


def test_what_is_seldom_changed_reaches_its_table(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "SLOTS", 4)
    bench.price()
    seldom, often = bench.key("1/month"), bench.key("1/month")
    long = bench.admit(seldom, 30)
    bench.settle(bench.admit(often, 1).request_id, 1)
    for _ in range(4):
        bench.settle(bench.admit(often, 1).request_id, 1)
    assert rows(bench, "SELECT request_id FROM holds") == [(long.request_id,)]
    assert rows(bench, f"SELECT held FROM windows WHERE account = '{seldom}'") == [(30,)]
    bench.settle(long.request_id, 10)
    assert rows(bench, "SELECT * FROM holds") == []
    assert bench.budgets(seldom)["month"].spent == 10


def test_a_store_of_the_shape_before_goes_on(new_bench: Callable[[str], Any]) -> None:
    bench = new_bench("old")
    bench.price()
    key = bench.key("1/month")
    held = bench.admit(key, 7)
    bench.core.close()
    db = sqlite3.connect(bench.layout.store)
    make_older(db, "0002")
    db.commit()
    db.close()
    bench.core = bench._open()
    assert revision(bench.layout.store) == HEAD
    assert revision(bench.layout.store.with_name(f"headgate.sqlite.before-{HEAD}")) == "0002"
    bench.settle(held.request_id, 5)
    assert bench.budgets(key)["month"].spent == 5
    report = audit(bench.layout)
    assert report.ok, report.first_difference
    bench.core.close()


@pytest.mark.parametrize(("spent", "held", "cap"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (2**62, 2**62, 2**63)])
def test_a_window_that_its_table_would_refuse_is_refused_at_once(
    bench: Any, spent: int, held: int, cap: int
) -> None:
    bench.price()
    bench.admit(bench.key("1/month"), 1)
    wrong = replace(bench.core.state.windows[1], spent=spent, held=held, cap=cap)
    with pytest.raises(StoreRefused, match="window 1"):
        bench.core._store.commit(Writes(windows={1: wrong}), bench.clock.us)
    assert isinstance(bench.admit(bench.key("1/month"), 1), wire.Grant)


def test_a_store_that_was_only_opened_keeps_its_ring(
    new_bench: Callable[[str], Any], bench_class: type[Any], tmp_path: Path
) -> None:
    bench = new_bench("first")
    bench.price()
    bench.admit(bench.key("1/month", rpm=10), 7)
    known = memory(bench)
    data = shutil.copytree(bench.layout.data_dir, tmp_path / "second")
    bench.core.close()
    SqliteStore(data / bench.layout.store.name, chain_key(b"p" * 32)).close()
    assert memory(bench_class(data)) == known

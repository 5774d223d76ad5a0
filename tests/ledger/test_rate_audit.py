"""What an audit says of limits per minute: what cannot be is found, and no honest history is accused."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import Take
from headgate_gateway.ledger.history import HOLD
from headgate_gateway.ledger.packing import pack

NewBench = Callable[[str], Any]
SECOND = 1_000_000


def limited(bench: Any) -> Any:
    """Requests of the last minute under limits: some have ended, one was voided, one is open."""
    bench.price()
    key = bench.key(rpm=10, tpm=1000)
    for turn in range(4):
        granted = bench.admit(key, 20)
        bench.clock.us += SECOND
        if turn == 2:
            bench.run(wire.Void(1, granted.request_id))
        else:
            bench.settle(granted.request_id, 7)
    bench.admit(key, 20)
    bench.audit_key = key
    return bench


def tampered(bench: Any, sql: str, *given: Any) -> str:
    bench.core.close()
    with contextlib.closing(sqlite3.connect(bench.layout.store, isolation_level=None)) as db:
        assert db.execute(sql, given).rowcount == 1
    report = bench.audit()
    assert not report.ok
    return str(report.first_difference)


@pytest.mark.parametrize(
    ("sql", "difference"),
    [
        ("UPDATE rates SET requests_tat = '0'", "the rate of requests of account {} is at 0, not from"),
        ("UPDATE rates SET requests_tat = '-1'", "the rate of requests of account {} is at -1, not from"),
        ("UPDATE rates SET requests_tat = requests_tat || '0'", "the rate of requests of account {} is at"),
        ("UPDATE rates SET tokens_tat = '-1'", "the rate of tokens of account {} is at -1, not from"),
        ("UPDATE rates SET requests_limit = 11", "account {} has a rate of requests of 11, the limits give 10"),
        ("UPDATE rates SET tokens_limit = NULL", "account {} has a rate of tokens of None, the limits give 1000"),
        ("DELETE FROM rates", "the rate of requests of account {} is missing"),
    ],
)
def test_a_rate_that_was_tampered_with(new_bench: NewBench, sql: str, difference: str) -> None:
    bench = limited(new_bench("tampered"))
    assert bench.audit().ok
    assert tampered(bench, sql).startswith(difference.format(bench.audit_key))


@pytest.mark.parametrize(
    "change",
    [
        lambda take: msgspec.structs.replace(take, units=take.units + 1),
        lambda take: msgspec.structs.replace(take, tat=str(int(take.tat) + 60 * SECOND * take.limit)),
        lambda take: msgspec.structs.replace(take, tat="0"),
        lambda take: msgspec.structs.replace(take, limit=take.limit + 1),
    ],
    ids=["units", "later", "earlier", "limit"],
)
@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_a_hold_that_took_what_it_cannot_have_taken(
    new_bench: NewBench, change: Callable[[Take], Take], kind: str
) -> None:
    bench = limited(new_bench("tampered"))
    bench.core.close()
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        ((request_id, packed),) = db.execute("SELECT request_id, packed FROM holds").fetchall()
    hold = HOLD.decode(packed)
    hold.takes = [change(take) if take.kind == kind else take for take in hold.takes]
    found = tampered(bench, "UPDATE holds SET packed = ?", pack(hold))
    assert found.startswith(f"the open hold of {request_id} cannot have taken")


def live(bench: Any, dice: random.Random) -> None:
    """Anything that touches limits, under a clock that moves and stands still."""
    bench.price()
    keys = [bench.key(project=project) for project in ("p", "p", "q")]
    open_: list[str] = []
    for _ in range(80):
        what = dice.random()
        if what < 0.12:
            account = dice.choice([*keys, "p", "q", "default"])
            kind = dice.choice(["requests", "tokens"])
            bench.do(c.SetLimit(account=account, kind=kind, amount=dice.choice([None, 1, 3, 7, 30, 10_000])))
        elif what < 0.6:
            stream = dice.random() < 0.5
            granted = bench.admit(dice.choice(keys), dice.choice([1, 5, 2000]), stream=stream, least=1)
            if isinstance(granted, wire.Grant):
                open_.append(granted.request_id)
        elif what < 0.65 and open_:
            bench.run(wire.Extend(1, dice.choice(open_), 2000))
        elif what < 0.85 and open_:
            bench.settle(open_.pop(dice.randrange(len(open_))), dice.choice([0, 1, 5, 9000]))
        elif open_:
            bench.run(wire.Void(1, open_.pop(dice.randrange(len(open_)))))
        bench.clock.us += dice.choice([0, 0, 1, SECOND, 7 * SECOND, 50 * SECOND])
        if dice.random() < 0.05:
            bench.seal()
        if dice.random() < 0.1:
            for full in (True, False):
                report = bench.audit(full=full)
                assert report.ok, report.first_difference


@pytest.mark.parametrize("seed", range(12))
def test_no_honest_history_is_accused(bench: Any, seed: int) -> None:
    live(bench, random.Random(seed))

"""The audit finds what was changed behind the ledger's back, and names it."""

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.audit import audit

from tests.ledger.tampering import unguarded


def busy(bench: Any) -> Any:
    """A store with a little of everything."""
    bench.price(input="0.0002", output="0.0015")
    key = bench.key("0.001/month", rpm=100)
    bench.do(c.SetBudget(account="p", amount="0.01", window="day"))
    for n in range(5):
        granted = bench.admit(key, 100, prompt=50)
        bench.settle(granted.request_id, 10 * n, prompt=50)
    bench.run(wire.Void(1, bench.admit(key, 7).request_id))
    bench.do(c.SetBudget(account=key, amount="0.0005", window="month"))
    stream = bench.admit(key, 5000, stream=True, least=1)
    bench.run(wire.Extend(1, stream.request_id, 2000))
    bench.admit(key, 3)
    assert audit(bench.layout).ok
    return bench


def test_it_counts_what_it_checked(bench: Any) -> None:
    report = busy(bench).audit()
    assert report.checked["usage_records"] == 5
    assert report.checked["voids"] == 1
    assert report.checked["open holds"] == 2
    assert report.checked["windows"] == 2


TAMPERED = [
    ("UPDATE usage_records SET cost = cost + 1 WHERE seq = 3", "usage_records row 3 .* was changed"),
    ("UPDATE usage_records SET output = 0, cost = 10 WHERE seq = 4", "usage_records row 4 .* was changed"),
    ("UPDATE usage_records SET digest = x'00' WHERE seq = 2", "usage_records row 2 .* was changed"),
    ("DELETE FROM usage_records WHERE seq = 5", "link .* covers 1 records"),
    ("DELETE FROM voids", "link .* covers 0 records and 1 voids"),
    ("UPDATE prices SET rates = '{\"output\":[1,1000000]}'", "prices row 1 .* was changed"),
    ("UPDATE limits SET amount = 1 WHERE id = 1", "limits row 1 .* was changed"),
    ("UPDATE audit_log SET actor = 'nobody'", "audit_log row 1 .* was changed"),
    ("DELETE FROM links WHERE number = 4", "link 4 of the chain is missing"),
    ("DELETE FROM links WHERE number = (SELECT max(number) FROM links)", "tail was cut off"),
    ("UPDATE links SET admitted = admitted + 1 WHERE number = 5", "link 5 of the chain does not follow"),
    ("UPDATE windows SET spent = spent - 1 WHERE id = 1", "window 1 .* says spent"),
    ("UPDATE windows SET held = 0 WHERE id = 2", "window 2 .* says held"),
    ("UPDATE windows SET version = version + 1, cap = cap", "has left no trace"),
    ("UPDATE windows SET amount = amount + 1, cap = cap + 1 WHERE id = 2", "window 2 .* says limit"),
    ("DELETE FROM windows WHERE id = 2", "window 2 is named by the history"),
    ("DELETE FROM holds", "were admitted"),
    ("DROP TRIGGER links_no_delete", "the trigger that forbids DELETE on links is missing"),
]


@pytest.mark.parametrize(("sql", "difference"), TAMPERED, ids=[sql for sql, _ in TAMPERED])
def test_tampering_is_found_and_named(new_bench: Callable[[str], Any], sql: str, difference: str) -> None:
    bench = busy(new_bench("tampered"))
    bench.core.close()
    dropped = sql.removeprefix("DROP TRIGGER ")
    with unguarded(bench.layout.store, without=dropped) as db:
        assert dropped != sql or db.execute(sql).rowcount > 0
    report = bench.audit()
    assert not report.ok
    with pytest.raises(AssertionError, match=difference):
        raise AssertionError(report.first_difference)


def test_whoever_lacks_the_pepper_cannot_forge_a_link(new_bench: Callable[[str], Any]) -> None:
    bench = busy(new_bench("forged"))
    assert "link 1" in (audit(bench.layout, pepper=b"another pepper").first_difference or "")
    bench.core.close()


@pytest.mark.parametrize("table", ["usage_records", "voids", "prices", "limits", "audit_log", "links"])
def test_history_cannot_be_changed_by_sql(bench: Any, table: str) -> None:
    busy(bench)
    db = sqlite3.connect(bench.layout.store)
    for sql in (f"DELETE FROM {table}", f"UPDATE {table} SET rowid = rowid"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(sql)
    db.close()


def test_no_store(new_bench: Callable[[str], Any]) -> None:
    bench = new_bench("none")
    bench.core.close()
    bench.layout.store.unlink()
    assert "there is no store" in (audit(bench.layout).first_difference or "")


def test_a_record_that_pinned_another_price_than_the_one_in_force_is_named(
    new_bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that forgets to let a planned price begin is consistent in all but this."""
    bench = new_bench("stale")
    bench.price()
    bench.do(c.SetPrice(model="m", rates={"output": "0.002"}, effective_from=bench.clock.us + 1))
    key = bench.key()
    monkeypatch.setattr("headgate_gateway.domain.price_book.PriceBook.advance", lambda *_: None)
    bench.clock.us += 2
    pinned = bench.admit(key)
    assert f"{pinned.request_id} pinned the price prc_" in (bench.audit().first_difference or "")
    bench.settle(pinned.request_id, 10)
    bench.core.close()
    assert f"{pinned.request_id} pinned the price prc_" in (bench.audit().first_difference or "")

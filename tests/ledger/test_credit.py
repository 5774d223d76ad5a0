"""Prepaid credit: grants burn in order, holds stay with the grants they drew from, and nothing is spent twice."""

from __future__ import annotations

from typing import Any

from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import credit, wire
from hypothesis import given, settings
from hypothesis import strategies as st

HOUR = 3600 * 1_000_000


def nano(amount: int) -> str:
    sign = "-" if amount < 0 else ""
    return f"{sign}0.{abs(amount):09d}"


def grant(bench: Any, amount: int, account: str = "default", **more: Any) -> Any:
    return bench.do(c.GrantCredit(account=account, amount=nano(amount), **more))


def grants(bench: Any, account: str = "default") -> list[tuple[int, int, int]]:
    """(limit, spent, held) of an account's grants, in the order they burn."""
    page = bench.do(c.ListAccounts(limit=1000))
    (found,) = [a for a in page.accounts if account in (a.id, a.name)]
    return [(b.limit, b.spent, b.held) for b in found.budgets if b.kind == "credit"]


def test_grants_burn_by_priority_then_expiry_then_age(bench: Any) -> None:
    bench.price()
    key = bench.key()
    now = bench.clock.us
    grant(bench, 11, priority=200)
    grant(bench, 12)
    grant(bench, 13, expires_at=now + 2 * HOUR)
    grant(bench, 14, expires_at=now + HOUR)
    grant(bench, 15, priority=0)
    assert [limit for limit, *_ in grants(bench)] == [15, 14, 13, 12, 11]
    bench.settle(bench.admit(key, 30).request_id, 30)
    assert grants(bench) == [(15, 15, 0), (14, 14, 0), (13, 1, 0), (12, 0, 0), (11, 0, 0)]


def test_a_hold_spans_grants_and_captures_the_first_ones(bench: Any) -> None:
    bench.price()
    key = bench.key()
    grant(bench, 10, priority=1)
    grant(bench, 20, priority=2)
    granted = bench.admit(key, 25)
    assert grants(bench) == [(10, 0, 10), (20, 0, 15)]
    bench.restart()
    bench.settle(granted.request_id, 12)
    assert grants(bench) == [(10, 10, 0), (20, 2, 0)]
    bench.run(wire.Void(1, bench.admit(key, 18).request_id))
    assert grants(bench) == [(10, 10, 0), (20, 2, 0)]
    assert bench.admit(key, 19).refused.code == "request_exceeds_budget"


def test_refusals_speak_of_the_credit_as_a_whole(bench: Any) -> None:
    bench.price()
    key = bench.key()
    grant(bench, 10)
    grant(bench, 10)
    held = bench.admit(key, 15)
    refused = bench.admit(key, 10).refused
    assert (refused.code, refused.scope) == ("budget_in_flight", "organization:credit")
    assert (refused.limit, refused.spent, refused.held) == (20, 0, 15)
    bench.settle(held.request_id, 15)
    bench.settle(bench.admit(key, 5).request_id, 5)
    assert bench.admit(key, 1).refused.code == "budget_exhausted"


def test_what_expired_is_gone_but_for_what_is_held_of_it(bench: Any) -> None:
    bench.price()
    key = bench.key()
    grant(bench, 10, expires_at=bench.clock.us + HOUR)
    grant(bench, 5)
    granted = bench.admit(key, 8)
    bench.clock.us += HOUR
    assert bench.admit(key, 6).refused.limit == 5
    bench.restart()
    bench.settle(granted.request_id, 8)
    assert grants(bench) == [(5, 0, 0)]
    bench.settle(bench.admit(key, 5).request_id, 5)
    assert bench.admit(key, 1).refused.code == "budget_exhausted"


def test_an_account_whose_credit_expired_is_still_prepaid(bench: Any) -> None:
    bench.price()
    key = bench.key()
    grant(bench, 10, expires_at=bench.clock.us + HOUR)
    bench.clock.us += HOUR
    for _ in range(2):
        assert bench.admit(key, 1).refused.code == "budget_exhausted"
        bench.restart()


def test_a_stream_goes_on_from_its_grant_to_the_next(bench: Any) -> None:
    bench.price()
    key = bench.key()
    grant(bench, 1100, expires_at=bench.clock.us + HOUR)
    grant(bench, 500)
    granted = bench.admit(key, 5000, least=1, stream=True)
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 1090))
    bench.clock.us += HOUR  # a hold may go on drawing from what it is pinned to
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 2000))
    assert (covered.output, covered.full) == (1600, False)
    bench.restart()
    assert bench.settle(granted.request_id, 1550).cost == 1550
    assert grants(bench) == [(500, 450, 0)]


def test_levels_are_drawn_from_alike(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000050/month")
    grant(bench, 30)
    grant(bench, 10, "p")
    grant(bench, 10, "p")
    assert bench.admit(key, 21).refused.scope == "project:credit"
    bench.settle(bench.admit(key, 15).request_id, 12)
    assert grants(bench) == [(30, 12, 0)]
    assert grants(bench, "p") == [(10, 10, 0), (10, 2, 0)]


def test_an_adjustment_takes_back_what_is_free_from_the_last(bench: Any) -> None:
    bench.price()
    key = bench.key()
    grant(bench, 10, priority=1)
    grant(bench, 10, priority=2)
    held = bench.admit(key, 12)
    rejected = grant(bench, -9)
    assert (rejected.code, rejected.field) == ("invalid", "amount")
    assert isinstance(grant(bench, -6), c.Done)
    assert grants(bench) == [(10, 0, 10), (4, 0, 2)]
    bench.restart()
    bench.settle(held.request_id, 12)
    assert bench.admit(key, 3).refused.code == "request_exceeds_budget"


def test_grants_that_are_over_do_not_pile_up(bench: Any) -> None:
    """Whoever tops up every day for years is not slowed down by what was used up."""
    bench.price()
    key = bench.key()
    grant(bench, 1000, priority=200, expires_at=bench.clock.us + HOUR)
    held = bench.admit(key, 7).request_id
    for n in range(50):
        grant(bench, 5)
        if n == 10:
            bench.clock.us += HOUR
        if n == 30:
            bench.restart()
        assert bench.settle(bench.admit(key, 5).request_id, 5).cost == 5
    (account,) = [a for a in bench.core.state.accounts.values() if a.kind == "organization"]
    assert len(account.budgets) == credit.MOST_USED_UP + 1
    assert grants(bench) == [(5, 5, 0)] * (credit.MOST_USED_UP + 1)
    assert bench.settle(held, 7).cost == 7
    bench.restart()
    assert len(grants(bench)) == credit.MOST_USED_UP + 1
    assert bench.admit(key, 1).refused.code == "budget_exhausted"


def test_bad_grants_are_named(bench: Any) -> None:
    bench.key()
    assert grant(bench, 1, priority=10_000).field == "priority"
    assert grant(bench, 1, expires_at=bench.clock.us).field == "expires_at"


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_credit_is_never_overdrawn(tmp_path_factory: Any, bench_class: Any, data: st.DataObject) -> None:
    """Whatever happens: captured + held never exceeds what was granted, and no nano is left that fits."""
    bench = bench_class(tmp_path_factory.mktemp("credit"))
    bench.price()
    key = bench.key()
    granted = spent = 0
    held: dict[str, int] = {}
    for _ in range(data.draw(st.integers(5, 25))):
        what = data.draw(st.sampled_from(("grant", "admit", "admit", "settle", "back", "restart")))
        amount = data.draw(st.integers(1, 40))
        if what == "grant":
            assert isinstance(grant(bench, amount, priority=data.draw(st.integers(0, 2))), c.Done)
            granted += amount
        elif what == "back" and granted:
            done = grant(bench, -amount)
            fits = amount <= granted - spent - sum(held.values())
            assert isinstance(done, c.Done) == fits
            granted -= amount if fits else 0
        elif what == "admit" and granted:
            reply = bench.admit(key, amount)
            assert isinstance(reply, wire.Grant) == (amount <= granted - spent - sum(held.values()))
            if isinstance(reply, wire.Grant):
                held[reply.request_id] = amount
        elif what == "settle" and held:
            who = data.draw(st.sampled_from(sorted(held)))
            spent += bench.settle(who, amount).cost
            del held[who]
        elif what == "restart":
            bench.restart()
        assert sum(s for _, s, _ in grants(bench)) == spent
        assert sum(h for *_, h in grants(bench)) == sum(held.values())
    report = bench.audit()
    assert report.ok, report.first_difference
    bench.core.close()

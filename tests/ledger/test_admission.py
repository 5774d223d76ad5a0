"""Admission: exact, all or nothing, and refusals that say what is in the way."""

import contextlib
import sqlite3
from typing import Any

import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.domain.money import MAX
from headgate_gateway.domain.pricing import price, upper
from headgate_gateway.ledger import wire
from headgate_plugin_api import Usage

SECOND = 1_000_000


def test_a_budget_is_spent_to_the_last_nano_and_never_beyond(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/total")
    granted = [bench.admit(key, 10) for _ in range(12)]
    assert [type(reply) for reply in granted] == [wire.Grant] * 10 + [wire.Denied] * 2
    refused = granted[-1].refused
    assert (refused.code, refused.scope) == ("budget_in_flight", "key:total")
    assert (refused.limit, refused.spent, refused.held) == (100, 0, 100)
    assert refused.retry_after_ms >= 1000
    for reply in granted[:10]:
        assert bench.settle(reply.request_id, 10).cost == 10
    assert bench.admit(key, 10).refused.code == "budget_exhausted"
    budget = bench.budgets(key)["total"]
    assert (budget.spent, budget.held) == (100, 0)


def test_a_window_is_shown_before_anything_is_spent_in_it_and_when_the_last_one_is_over(bench: Any) -> None:
    day = 24 * 3600 * SECOND
    bench.price()
    key = bench.key("0.000000100/day")
    fresh = bench.budgets(key)["day"]
    assert fresh.starts_at <= bench.clock.us < fresh.ends_at == fresh.starts_at + day
    assert bench.settle(bench.admit(key, 10).request_id, 10).cost == 10
    used = bench.budgets(key)["day"]
    assert (used.spent, used.starts_at, used.ends_at) == (10, fresh.starts_at, fresh.ends_at)
    bench.clock.us += day
    later = bench.budgets(key)["day"]
    assert (later.spent, later.starts_at, later.ends_at) == (0, fresh.ends_at, fresh.ends_at + day)


def test_all_three_levels_or_none(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000001/total")
    bench.do(c.SetBudget(account="p", amount="0.000000050", window="day"))
    bench.do(c.SetBudget(account="default", amount="0.000000040", window="month"))
    assert isinstance(bench.admit(key, 40), wire.Grant)
    refused = bench.admit(key, 10).refused
    assert (refused.code, refused.scope) == ("budget_in_flight", "organization:month")
    assert bench.budgets(key)["total"].held == 40
    assert bench.budgets("p")["day"].held == 40


def test_a_request_larger_than_what_is_left_learns_what_fits(bench: Any) -> None:
    bench.price(input="0.002", output="0.001")
    key = bench.key("0.000000100/month")
    assert bench.settle(bench.admit(key, 30).request_id, 30).cost == 30
    refused = bench.admit(key, 71, prompt=10).refused
    assert refused.code == "request_exceeds_budget"
    assert refused.largest_output == 50
    assert refused.resets_at > bench.clock.us
    assert isinstance(bench.admit(key, 50, prompt=10), wire.Grant)


def test_a_whole_answer_takes_less_where_less_is_enough(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/total")
    first = bench.admit(key, 4096, least=1)
    assert first.output == 100
    assert bench.admit(key, 4096, least=1).refused.code == "budget_in_flight"
    bench.settle(first.request_id, 30)
    assert bench.admit(key, 4096, least=1).output == 70


def test_capture_never_exceeds_the_hold(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/total")
    granted = bench.admit(key, 10)
    recorded = bench.settle(granted.request_id, 1000)
    assert (recorded.cost, recorded.overrun) == (10, 990)
    assert bench.budgets(key)["total"].spent == 10


def test_a_lowered_budget_only_blocks_new_holds(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/total")
    granted = bench.admit(key, 80)
    bench.do(c.SetBudget(account=key, amount="0.000000010", window="total"))
    assert isinstance(bench.admit(key, 1), wire.Denied)
    assert bench.settle(granted.request_id, 80).cost == 80
    bench.do(c.SetBudget(account=key, amount="0.000000090", window="total"))
    assert isinstance(bench.admit(key, 10), wire.Grant)
    bench.restart()
    assert isinstance(bench.admit(key, 1), wire.Denied)


def test_a_hold_stays_in_the_window_that_it_began_in(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/hour")
    granted = bench.admit(key, 100)
    bench.clock.us += 3600 * SECOND
    again = bench.admit(key, 100)
    assert isinstance(again, wire.Grant)
    bench.restart()
    bench.settle(granted.request_id, 100)
    assert bench.budgets(key)["hour"].held == 100
    assert bench.budgets(key)["hour"].spent == 0
    bench.settle(again.request_id, 60)
    assert isinstance(bench.admit(key, 40), wire.Grant)


def test_an_extension_stays_there_as_well(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000001200/hour")
    granted = bench.admit(key, 5000, least=1, stream=True)
    assert granted.output == 1024
    bench.clock.us += 3600 * SECOND
    next_hour = bench.admit(key, 1000)
    assert isinstance(next_hour, wire.Grant)
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 2000))
    assert (covered.output, covered.full) == (1200, False)  # what the hour that has ended had left
    assert bench.budgets(key)["hour"].held == 1000
    assert bench.settle(granted.request_id, 1200).cost == 1200
    assert bench.budgets(key)["hour"].spent == 0


def test_an_unpriced_model_is_free_without_a_budget_and_refused_with_one(bench: Any) -> None:
    free, budgeted = bench.key(), bench.key("1/month")
    granted = bench.admit(free, 10)
    assert (granted.price, granted.held) == (None, 0)
    assert bench.settle(granted.request_id, 10).cost == 0
    assert bench.admit(budgeted, 10).refused.code == "unpriced_model"


def test_a_soft_budget_counts_and_refuses_nothing(bench: Any) -> None:
    bench.price()
    key = bench.key()
    bench.do(c.SetBudget(account=key, amount="0.000000005", window="day", hard=False))
    granted = bench.admit(key, 10)
    assert granted.over == ()
    bench.settle(granted.request_id, 10)
    assert bench.budgets(key)["day"].spent == 10
    bench.do(c.SetBudget(account="p", amount="1", window="month"))
    assert bench.admit(key, 10).over == ("key:day",)
    bench.clock.us += 24 * 3600 * 1_000_000
    assert bench.admit(key, 10).over == ()


def test_credit_is_spent_once(bench: Any) -> None:
    bench.price()
    key = bench.key()
    bench.do(c.GrantCredit(account="default", amount="0.000000010"))
    bench.settle(bench.admit(key, 10).request_id, 10)
    assert bench.admit(key, 1).refused.scope == "organization:credit"
    bench.do(c.GrantCredit(account="default", amount="0.000000005"))
    assert isinstance(bench.admit(key, 5), wire.Grant)


def test_price_order(bench: Any) -> None:
    key = bench.key()
    organization = bench.core.state.keys[key].path[2].id
    cost = []
    for scope in (None, "", organization, key):
        if scope is None:
            bench.do(c.SyncPrices(models={"m": {"output": "0.001"}}))
        else:
            rate = {"": "0.002", organization: "0.003", key: "0.004"}[scope]
            bench.do(c.SetPrice(model="m", rates={"output": rate}, scope=scope))
        cost.append(bench.settle(bench.admit(key, 1).request_id, 1).cost)
    assert cost == [1, 2, 3, 4]
    assert bench.do(c.SyncPrices(models={"m": {"output": "0.001"}})).versions == ()
    bench.do(c.SetPrice(model="m", rates=None, scope=key))
    bench.restart()
    assert bench.settle(bench.admit(key, 1).request_id, 1).cost == 3


def test_a_price_is_pinned_by_the_hold(bench: Any) -> None:
    bench.price(output="0.001")
    key = bench.key()
    granted = bench.admit(key, 10)
    bench.price(output="0.009")
    assert bench.settle(granted.request_id, 10).cost == 10


def test_keys_are_checked(bench: Any) -> None:
    bench.price()
    key = bench.key(models=frozenset({"other"}), expires_at=bench.clock.us + SECOND)
    assert bench.admit(key).refused.code == "permission_denied"
    assert bench.admit(bench.key(scopes=frozenset({"usage"}))).refused.code == "permission_denied"
    bench.clock.us += SECOND
    assert bench.admit(key).refused.code == "invalid_api_key"
    assert bench.admit("key_none").refused.code == "invalid_api_key"
    gone = bench.key()
    assert bench.do(c.RevokeKey(id=gone)).changed
    assert bench.admit(gone).refused.code == "invalid_api_key"
    bench.restart()
    assert bench.admit(gone).refused.code == "invalid_api_key"


def test_a_stream_asks_for_more_and_is_told_what_there_is(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000001500/total")
    granted = bench.admit(key, 100_000, least=1, stream=True)
    assert granted.output == 1024
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 1400))
    assert (covered.output, covered.full) == (1400, True)
    other = bench.admit(key, 50)
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 2000))
    assert (covered.output, covered.full, covered.others) == (1450, False, True)
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 1200))
    assert covered.output == 1450
    bench.settle(other.request_id, 0, billed=False)
    bench.restart()
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 2000))
    assert covered.output == 1500
    assert bench.settle(granted.request_id, 1500).cost == 1500


def test_a_void_leaves_nothing(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/total", rpm=1, concurrency=1)
    granted = bench.admit(key, 100)
    bench.run(wire.Void(1, granted.request_id))
    assert bench.budgets(key)["total"].held == 0
    assert isinstance(bench.admit(key, 100), wire.Grant)


def test_everything_is_idempotent_by_request_id(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/total")
    granted = bench.admit(key, 10, request_id="req_same")
    assert bench.admit(key, 10, request_id="req_same") == granted
    assert bench.budgets(key)["total"].held == 10
    first = bench.settle("req_same", 7)
    assert bench.settle("req_same", 9) == first
    bench.restart()
    assert bench.settle("req_same", 9) == first
    assert bench.run(wire.Void(1, "req_same"))[0].cost == 7
    assert bench.settle("req_never", 1).code == "unknown_request"


def test_late_admissions_are_dropped(bench: Any) -> None:
    key = bench.key()
    op = wire.Admit(1, "req_late", key, "m", "chat", (0,) * 9, 0, 0, False, bench.clock.us - 1)
    assert bench.run(op)[0].refused.code == "overloaded"
    assert not bench.core.state.holds


@pytest.mark.parametrize("field", ["rpm", "tpm", "concurrency", "max_output"])
def test_bad_limits_are_named(bench: Any, field: str) -> None:
    rejected = bench.do(
        c.Create(id="key_x", digest=b"d" * 32, prefix="hg_", project="p", **{field: 0})  # type: ignore[arg-type]
    )
    assert (rejected.code, rejected.field) == ("invalid", field)


@pytest.mark.parametrize(
    "terms",
    [
        {"input": "0.001", "output": "0.002", "context": ({"above": 50, "input": "0.003", "output": "0.009"},)},
        {"input": "0.003", "output": "0.002", "graduated": ({"above": 20, "input": "0.001", "output": "0.005"},)},
        {"input": "0.001", "minimum": "0.000000400"},
    ],
    ids=["context", "graduated", "minimum"],
)
def test_tiers_and_minimums_are_held_charged_audited_and_kept(bench: Any, terms: Any) -> None:
    assert isinstance(bench.do(c.SetPrice(model="m", rates=terms)), c.PricesSet)
    version = bench.core.state.prices.at(("", "m", "set"), bench.clock.us)
    key = bench.key("1/total")
    for prompt, output in ((10, 5), (60, 5), (60, 60), (0, 0)):
        granted = bench.admit(key, output, prompt=prompt)
        usage = Usage(input=prompt, output=output)
        assert granted.held == upper(usage, version)
        assert bench.settle(granted.request_id, output, prompt=prompt).cost == price(usage, version).total
    bench.restart()
    assert bench.core.state.prices.at(("", "m", "set"), bench.clock.us) == version
    again = bench.do(c.SyncPrices(models={"m": terms}))
    assert len(again.versions) == 1
    assert bench.do(c.SyncPrices(models={"m": terms})).versions == ()


def test_a_stream_extends_at_the_dearest_band(bench: Any) -> None:
    rates = {"output": "0.001", "graduated": ({"above": 1000, "output": "0.002"},)}
    bench.do(c.SetPrice(model="m", rates=rates))
    key = bench.key("1/total")
    granted = bench.admit(key, 5000, least=1, stream=True)
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 3000))
    assert (covered.output, covered.held) == (3000, 6000)
    assert bench.settle(granted.request_id, 3000).cost == 1000 + 4000


def test_an_input_may_cost_more_than_fits_into_64_bits_before_it_is_rounded(bench: Any) -> None:
    """A currency of small units: a long prompt costs thousands of it."""
    bench.price(input="50000", output="200000")
    key = bench.key("1000000/total")
    granted = bench.admit(key, 100_000, prompt=200_000, least=1, stream=True)
    assert granted.held == (10_000 * 10**9) + 1024 * 200_000 * 1000
    bench.restart()
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 2048))
    assert (covered.output, covered.held) == (2048, 10_000 * 10**9 + 2048 * 200_000 * 1000)
    assert bench.settle(granted.request_id, 2048, prompt=200_000).cost == covered.held


def test_what_can_be_counted_bounds_holds_that_no_budget_does(bench: Any) -> None:
    bench.price(output="9000000000")  # a token costs 9,000: a million of them is nearly all that can be counted
    key = bench.key()
    bench.do(c.SetBudget(account=key, amount="1", window="total", hard=False))
    granted = bench.admit(key, 10**7, least=1, stream=True)
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 10**7))
    most = MAX // (9000 * 10**9)
    assert (covered.output, covered.full, covered.others) == (most, False, False)
    refused = bench.admit(key, 500_000).refused
    assert (refused.code, refused.scope) == ("request_exceeds_budget", "key:total")
    assert bench.settle(granted.request_id, 2 * most).cost == covered.held


def test_the_tightest_of_several_budgets_says_how_much_is_held(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000050/total")
    for account, amount, window in (("p", 70, "day"), ("default", 60, "month")):
        bench.do(c.SetBudget(account=account, amount=f"0.{amount:09d}", window=window))
    assert bench.admit(key, 4096, least=1).output == 50
    wide = bench.key("0.000001500/total", project="wide")
    bench.do(c.SetBudget(account="wide", amount="0.000001300", window="day"))
    bench.do(c.SetBudget(account="default", amount="0.000001450", window="month"))
    granted = bench.admit(wide, 5000, least=1, stream=True)
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 3000))
    assert (covered.output, covered.full, covered.others) == (1300, False, False)


def test_a_refusal_names_the_budget_in_the_way_and_not_one_that_just_fits(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000010/total")
    bench.do(c.SetBudget(account="p", amount="0.000000100", window="day"))
    bench.admit(bench.key(), 95)
    refused = bench.admit(key, 10).refused
    assert (refused.code, refused.scope, refused.held) == ("budget_in_flight", "project:day", 95)


def test_a_stream_that_costs_nothing_is_extended(bench: Any) -> None:
    granted = bench.admit(bench.key(), 5000, least=1, stream=True)
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 5000))
    assert (covered.output, covered.held, covered.full) == (5000, 0, True)
    assert bench.settle(granted.request_id, 5000).cost == 0


def test_requests_of_a_window_that_has_ended_end_one_by_one(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/hour")
    first, second = bench.admit(key, 40).request_id, bench.admit(key, 40).request_id
    bench.clock.us += 3600 * SECOND
    assert bench.settle(first, 30).cost == 30
    assert bench.settle(second, 30).cost == 30
    assert isinstance(bench.admit(key, 100), wire.Grant)
    assert len(bench.core.state.windows) == 1  # what is over is not kept in memory


def test_a_soft_budget_is_over_once_it_is_spent_and_not_before(bench: Any) -> None:
    bench.price()
    key = bench.key()
    bench.do(c.SetBudget(account=key, amount="0.000000010", window="day", hard=False))
    bench.settle(bench.admit(key, 9).request_id, 9)
    assert bench.admit(key, 1).over == ()
    bench.settle(bench.admit(key, 1).request_id, 1)
    assert bench.admit(key, 1).over == ("key:day",)


def test_counts_that_nobody_can_have_are_cut_to_what_can_be_kept(bench: Any) -> None:
    bench.price()
    key = bench.key("1/total")
    request_id = bench.admit(key, 10).request_id
    usage = (-5, 10**18, 0, 7, 0, 0, 0, 0, -1)
    (recorded,) = bench.run(wire.Settle(1, request_id, usage, "upstream", "ok", "echo"))
    assert recorded.cost == 7
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        found = db.execute("SELECT input, cache_read, output, gpu_ms FROM usage_records").fetchall()
    assert found == [(0, 10**12, 7, 0)]


def test_a_budget_that_is_lifted_while_something_is_held_comes_back_empty(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000100/month")
    held = bench.admit(key, 60).request_id
    for amount in (None, "0.000000100"):
        bench.do(c.SetBudget(account=key, amount=amount, window="month"))
    bench.restart()
    assert isinstance(bench.admit(key, 100), wire.Grant)
    assert bench.settle(held, 60).cost == 60
    budget = bench.budgets(key)["month"]
    assert (budget.spent, budget.held) == (0, 100)


def test_what_wants_reconciliation_is_flagged(bench: Any) -> None:
    bench.price()
    key = bench.key()
    for output, outcome in ((10, "ok"), (11, "ok"), (5, "client_gone"), (5, "gateway_crash"), (5, "lost_power")):
        bench.settle(bench.admit(key, 10).request_id, output, outcome=outcome)
    with contextlib.closing(sqlite3.connect(bench.layout.store)) as db:
        found = db.execute("SELECT overrun, flagged FROM usage_records ORDER BY seq").fetchall()
    assert found == [(0, 0), (1, 1), (0, 0), (0, 1), (0, 1)]


def test_a_refused_request_that_opened_a_window_leaves_it_whole(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000000010/hour")
    assert bench.admit(key, 11).refused.code == "request_exceeds_budget"
    assert bench.audit().ok
    assert isinstance(bench.admit(key, 10), wire.Grant)
    assert bench.do(c.SetBudget(account=key, amount="1", window="day", timezone="Mars/Base")).field == "timezone"


def test_who_was_admitted_may_finish_whatever_becomes_of_key_budget_and_price_meanwhile(bench: Any) -> None:
    bench.price()
    key = bench.key("0.000010000/month", expires_at=bench.clock.us + 60 * SECOND)
    bench.do(c.GrantCredit(account="p", amount="0.000010000", expires_at=bench.clock.us + 30 * SECOND))
    granted = bench.admit(key, 5000, least=1, stream=True)
    bench.do(c.RevokeKey(id=key))
    bench.do(c.SetPrice(model="m", rates={"output": "9"}))
    bench.clock.us += 90 * SECOND
    bench.restart()
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 3000))
    assert (covered.output, covered.held) == (3000, 3000)
    bench.do(c.SetBudget(account=key, amount="0.000000001", window="month"))
    (covered,) = bench.run(wire.Extend(1, granted.request_id, 4000))
    assert (covered.output, covered.full) == (3000, False)  # a lowered budget gives no more, and takes nothing
    bench.do(c.SetBudget(account=key, amount=None, window="month"))
    bench.restart()
    assert bench.settle(granted.request_id, 2900).cost == 2900
    assert bench.admit(key, 1).refused.code == "invalid_api_key"

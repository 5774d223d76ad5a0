"""Prices that begin later, change before they begin, and stand so much above others."""

from typing import Any

import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.domain.price_book import MOST_PLANNED
from headgate_gateway.domain.pricing import PriceVersion, quoted_terms

SECOND = 1_000_000
HOUR = 3600 * SECOND
CHEAP, DEAR = {"output": "0.001"}, {"output": "0.005"}  # 1 and 5 nano-units a token


@pytest.fixture(params=["sqlite", "postgres"])
def any_bench(request: pytest.FixtureRequest) -> Any:
    if request.param == "sqlite":
        return request.getfixturevalue("bench")
    return request.getfixturevalue("new_postgres_bench")()


def put(bench: Any, rates: dict[str, Any] | None, in_us: int | None = None, **more: Any) -> PriceVersion:
    """Set a price; the version that was made."""
    begins = None if in_us is None else bench.clock.us + in_us
    made = bench.do(c.SetPrice(model="m", rates=rates, effective_from=begins, **more))
    assert isinstance(made, c.PricesSet), made
    return made.versions[0]


def listed(bench: Any, *, history: bool = False) -> dict[str, str]:
    """State by id."""
    return {one.version.id: one.state for one in bench.do(c.ListPrices(history=history)).prices}


def test_a_price_begins_at_its_time_and_what_was_admitted_before_keeps_the_old(any_bench: Any) -> None:
    bench = any_bench
    old, new = put(bench, CHEAP), put(bench, DEAR, HOUR)
    assert listed(bench) == {old.id: "in_force", new.id: "coming"}
    key = bench.key("1/month")
    early = bench.admit(key, 100)
    assert (early.price, early.held) == (old.id, 100)
    bench.clock.us += HOUR - 1
    assert bench.admit(key, 100).price == old.id
    bench.restart()
    bench.clock.us += 1
    late = bench.admit(key, 100)
    assert (late.price, late.held) == (new.id, 500)
    assert bench.settle(early.request_id, 100).cost == 100
    assert bench.settle(late.request_id, 100).cost == 500
    assert listed(bench, history=True) == {old.id: "past", new.id: "in_force"}
    assert listed(bench) == {new.id: "in_force"}


def test_what_has_begun_stays_begun_when_the_clock_is_set_back(any_bench: Any) -> None:
    bench = any_bench
    put(bench, CHEAP)
    new = put(bench, DEAR, HOUR)
    key = bench.key("1/month")
    bench.clock.us += 2 * HOUR
    assert bench.admit(key, model="unpriced").refused.code == "unpriced_model"  # nothing was written
    bench.clock.us -= 2 * HOUR
    granted = bench.admit(key, 100)
    assert granted.price == new.id
    bench.settle(granted.request_id, 100)


def test_of_two_that_begin_together_the_later_made_counts(any_bench: Any) -> None:
    bench = any_bench
    put(bench, CHEAP)
    key = bench.key()
    plan, change = put(bench, DEAR, HOUR), put(bench, {"output": "0.003"}, HOUR)
    assert listed(bench, history=True)[plan.id] == "replaced"
    bench.clock.us += HOUR
    assert bench.admit(key).price == change.id


def test_a_withdrawal_can_be_planned_and_lets_the_config_speak(any_bench: Any) -> None:
    bench = any_bench
    bench.do(c.SyncPrices(models={"m": CHEAP}))
    put(bench, DEAR)
    put(bench, None, HOUR)
    key = bench.key()
    assert bench.admit(key).held == 50
    bench.clock.us += HOUR
    assert bench.admit(key).held == 10


def test_a_plan_is_cancelled_by_one_more_version(any_bench: Any) -> None:
    bench = any_bench
    old, plan = put(bench, CHEAP), put(bench, DEAR, HOUR)
    (instead,) = bench.do(c.CancelPrice(id=plan.id)).versions
    assert (instead.rates, instead.effective_us) == (old.rates, plan.effective_us)
    assert listed(bench, history=True) == {old.id: "in_force", plan.id: "replaced", instead.id: "coming"}
    for id_, why in ((plan.id, "was changed"), (old.id, "has begun"), ("prc_none", "there is no price")):
        assert why in bench.do(c.CancelPrice(id=id_)).message
    key = bench.key()
    bench.clock.us += HOUR
    assert bench.admit(key).held == 10


def test_the_past_is_not_open_to_prices(any_bench: Any) -> None:
    bench = any_bench
    put(bench, CHEAP)
    for begins in (bench.clock.us - 1, 2**62):
        refused = bench.do(c.SetPrice(model="m", rates=DEAR, effective_from=begins))
        assert (refused.code, refused.field) == ("invalid", "effective_from")
    for n in range(MOST_PLANNED):
        put(bench, DEAR, HOUR + n)
    refused = bench.do(c.SetPrice(model="m", rates=DEAR, effective_from=bench.clock.us + 1))
    assert "planned there already" in refused.message
    put(bench, CHEAP, HOUR)  # what is planned for the same moment is changed, not added


def test_an_override_by_name_is_the_organizations(any_bench: Any) -> None:
    bench = any_bench
    put(bench, CHEAP)
    key = bench.key(organization="acme")
    put(bench, DEAR, scope="acme")
    assert bench.admit(key).held == 50


def test_a_margin_follows_what_everyone_pays(any_bench: Any) -> None:
    bench = any_bench
    bench.do(c.SyncPrices(models={"m": {"output": "0.002"}}))
    key, other = bench.key(organization="acme"), bench.key()
    mine = put(bench, {"margin": "50"}, scope=key)
    assert quoted_terms(mine.terms) == {"output": "0.003"}
    assert mine.margin == 500_000
    everyones = put(bench, {"margin": "+25%"})  # on what the config says
    assert bench.admit(other, 100).held == 250
    assert bench.admit(key, 100).held == 375  # and the key's on that
    put(bench, {"margin": "-10"}, scope="acme")
    assert bench.admit(key, 100).held == 375  # the key's own goes first, and stands on everyone's
    bench.do(c.SyncPrices(models={"m": {"output": "0.004"}}))
    assert bench.admit(other, 100).held == 500
    assert bench.admit(key, 100).held == 750
    put(bench, DEAR, HOUR)
    bench.clock.us += HOUR
    assert bench.admit(other, 100).held == 500
    assert bench.admit(key, 100).held == 750
    put(bench, None)
    bench.do(c.SyncPrices(models={"m": None}))
    assert bench.admit(key, 100).price is None
    assert everyones.margin == 250_000


@pytest.mark.parametrize(
    "rates", [{"margin": "x"}, {"margin": "20", "input": "1"}, {"margin": "-101"}, {"margin": "1.00001"}]
)
def test_a_margin_that_is_none_is_refused(bench: Any, rates: dict[str, str]) -> None:
    put(bench, CHEAP)
    refused = bench.do(c.SetPrice(model="m", rates=rates))
    assert (refused.code, refused.field) == ("invalid", "rates")


def test_a_margin_needs_something_to_stand_on(bench: Any) -> None:
    assert "no price that a margin could be on" in bench.do(c.SetPrice(model="m", rates={"margin": "20"})).message


def test_the_list_comes_in_pages(bench: Any) -> None:
    made = [put(bench, CHEAP, n * HOUR) for n in range(1, 6)]
    found, after = [], ""
    while after is not None:
        page = bench.do(c.ListPrices(after=after, limit=2, model="m"))
        found += [one.version.id for one in page.prices]
        after = page.after
    assert found == sorted(version.id for version in made)
    assert not bench.do(c.ListPrices(model="other")).prices

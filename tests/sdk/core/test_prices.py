"""What the client takes a request to cost at most: no less than the gateway bills, no more than it holds."""

from __future__ import annotations

from typing import Any

import pytest
from headgate import errors
from headgate._core.prices import ModelPrice, PriceList, Tier, upper
from headgate.testing import FakeGateway, FakeModel
from headgate_gateway.domain import pricing
from headgate_plugin_api import Usage
from hypothesis import example, given
from hypothesis import strategies as st

from ..conftest import HELLO  # noqa: TID252  the same words, not a second copy of them

AMOUNTS = st.decimals(0, 100, places=6).map(str)
RATES = st.dictionaries(
    st.sampled_from(["input", "cache_read", "cache_write", "output", "reasoning", "request"]), AMOUNTS, min_size=1
)
ABOVE = st.lists(st.integers(1, 50), min_size=1, max_size=3, unique=True).map(sorted)


@st.composite
def quotes(draw: st.DrawFn) -> dict[str, Any]:
    quote: dict[str, Any] = draw(RATES)
    if draw(st.booleans()):
        quote["minimum"] = draw(AMOUNTS)
    if kind := draw(st.sampled_from([None, "context", "graduated"])):
        quote[kind] = [{"above": above, **draw(RATES)} for above in draw(ABOVE)]
    return quote


COUNTS = st.tuples(*[st.integers(0, 60)] * 5)


@given(quotes(), COUNTS)
@example({"input": "1", "graduated": [{"above": 10, "input": "9"}]}, (11, 0, 0, 0, 0))
@example({"input": "1", "output": "1", "context": [{"above": 10, "output": "9"}]}, (6, 6, 0, 7, 0))
@example({"input": "1", "minimum": "5"}, (1, 0, 0, 0, 0))
def test_a_bound_lies_between_the_bill_and_the_hold(quote: dict[str, Any], counts: tuple[int, ...]) -> None:
    terms = pricing.parse_quote(quote)
    version = pricing.PriceVersion(
        id="prc_1", model="m", rates=terms.rates, tiers=terms.tiers, by=terms.by, minimum=terms.minimum
    )
    price = ModelPrice.parse(pricing.quoted_terms(terms))
    assert price is not None
    into, cached, written, out, thought = counts
    usage = Usage(input=into, cache_read=cached, cache_write=written, output=out, reasoning=thought, requests=1)
    most = price.cost(into + cached + written, out + thought)
    assert pricing.price(usage, version).total <= most <= pricing.upper(usage, version)


@given(AMOUNTS, AMOUNTS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_without_tiers_a_bound_is_the_bill_rounded_up(into: str, out: str, read: int, made: int) -> None:
    quote = {"input": into, "output": out}
    version = pricing.PriceVersion(id="prc_1", model="m", rates=pricing.parse_rates(quote))
    price = ModelPrice.parse(quote)
    assert price is not None
    assert 0 <= price.cost(read, made) - pricing.price(Usage(input=read, output=made), version).total <= 1


def test_what_is_not_understood_is_unknown() -> None:
    assert ModelPrice.parse({}) is None
    assert ModelPrice.parse(None) is None
    assert ModelPrice.parse({"input": "1", "output": [{"upto": 5}]}) is None
    assert ModelPrice.parse({"input": "1", "context": [{"above": 5, "input": "much"}]}) is None
    # How long a request runs on a GPU is not known before.
    assert ModelPrice.parse({"input": "1", "gpu_second": "1"}) is None
    dear = ModelPrice.parse({"input": "1", "cache_write": "3", "output": "2", "reasoning": "5", "request": "0.1"})
    assert dear == ModelPrice((Tier(0, 3 * 10**9, 5 * 10**9, 10**8),))


ONE = ModelPrice((Tier(0, 10**6, 10**6, 0),))


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        ({"max_tokens": 5, "n": 2}, 7 + 10),
        ({"max_completion_tokens": 5}, 7 + 5),
        ({"max_output_tokens": 5}, 7 + 5),
        ({"prompt": ["a", "b", "c"], "max_tokens": 5, "n": 2}, 7 + 30),
        ({"prompt": "a", "max_tokens": 5}, 7 + 5),
        ({"query": "four", "documents": ["a", "b"]}, 7 + 2 * (4 + 8)),
        ({"input": ["a", "b"]}, 7),
    ],
)
def test_the_most_that_a_request_reads_and_writes(document: dict[str, Any], tokens: int) -> None:
    most = upper(document, 7, ONE)
    assert (most.tokens, most.nano) == (tokens, tokens)
    assert upper(document, 7, None).nano is None


def test_a_list_is_believed_for_a_while() -> None:
    prices = PriceList()
    assert not prices.knows(0.0)
    prices.learn({"m": ONE}, 10.0)
    assert prices.knows(309.0)
    assert not prices.knows(310.0)
    assert prices.of("m") is ONE
    assert prices.of("other") is None


def asked_for_prices(gateway: FakeGateway) -> int:
    return sum(seen.path == "/v1/models" for seen in gateway.seen)


def test_prices_are_asked_for_once_per_key_and_while() -> None:
    gateway = FakeGateway()
    client = gateway.client()
    with client.budget(max_cost="1"):
        for side in (client, client.with_options(max_retries=0)):
            side.chat.completions.create(model="echo", messages=HELLO)  # type: ignore[arg-type]
        assert asked_for_prices(gateway) == 1
        # Another key may have other prices, and every price may change.
        client.with_options(api_key="hg_other").chat.completions.create(model="echo", messages=HELLO)  # type: ignore[arg-type]
        assert asked_for_prices(gateway) == 2
        gateway.clock.advance(301)
        client.chat.completions.create(model="echo", messages=HELLO)  # type: ignore[arg-type]
        assert asked_for_prices(gateway) == 3


def test_an_unpriced_budget_counts_afterwards() -> None:
    gateway = FakeGateway({"echo": FakeModel(price={"input": "1", "output": "2", "gpu_second": "1"})})
    client = gateway.client()
    with client.budget(max_cost="0.000001"):
        client.chat.completions.create(model="echo", messages=HELLO)  # type: ignore[arg-type]
        with pytest.raises(errors.BudgetExceeded):
            client.chat.completions.create(model="echo", messages=HELLO)  # type: ignore[arg-type]

"""Quotes and model cards: what a request would cost at most, and what models cost at all."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx2 as httpx
import pytest

from tests.processes import ADMIN_KEY

HELLO = [{"role": "user", "content": "hello brave new world"}]


def test_cards_carry_what_a_client_plans_with(client: httpx.Client) -> None:
    card = client.get("/v1/models/echo").json()
    assert card["price"] == {"input": "1", "output": "2"}
    assert (card["task"], card["state"]) == ("chat", "ready")
    assert {"max_input_tokens", "max_output_tokens"} <= card.keys()
    listed = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert listed["echo"] == card
    assert listed["org/words"]["price"] is None


def test_a_card_shows_the_price_of_the_key_that_asks(gateway: Any) -> None:
    with gateway.client(ADMIN_KEY) as admin:
        made = admin.post("/admin/v1/keys", json={"project": "special"}).json()
        rates = {"input": "0.5", "output": "1"}
        price = {"model": "vectors", "rates": rates, "scope": made["id"]}
        assert admin.post("/admin/v1/prices", json=price).status_code == 200
        assert admin.get("/v1/models/vectors").json()["price"] == {"input": "1"}
    with gateway.client(made["key"]) as special:
        assert special.get("/v1/models/vectors").json()["price"] == rates
        assert special.post("/v1/quotes", json={"model": "vectors", "input": "a"}).json()["rates"] == rates


def test_a_price_begins_on_every_worker_without_a_word_from_the_ledger(gateway: Any) -> None:
    made = gateway.admin("POST", "keys", json={"project": "punctual"})
    later = {"input": "7", "output": "9"}
    begins = datetime.now(UTC) + timedelta(seconds=0.5)
    plan = {"model": "echo", "rates": later, "scope": made["id"], "effective_from": begins.isoformat()}
    (version,) = gateway.admin("POST", "prices", json=plan)["versions"]
    body = {"model": "echo", "messages": HELLO, "max_tokens": 1}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with gateway.client(made["key"]) as client:  # a connection each: any of the workers answers
            before, quote, after = (
                datetime.now(UTC),
                client.post("/v1/quotes", json=body).json(),
                datetime.now(UTC),
            )
        assert (quote["rates"] == later) or before < begins
        assert (quote["rates"] != later) or after >= begins
        if quote["rates"] == later:
            break
    with gateway.client(made["key"]) as client:
        assert client.post("/v1/chat/completions", json=body).headers["headgate-price"] == version["id"]


def test_a_quote_is_never_below_the_bill(client: httpx.Client) -> None:
    body = {"model": "echo", "messages": HELLO, "max_tokens": 10}
    quote = client.post("/v1/quotes", json=body).json()
    answer = client.post("/v1/chat/completions", json=body)
    assert (quote["object"], quote["model"]) == ("quote", "echo")
    assert quote["price"] == answer.headers["headgate-price"]
    assert quote["max_output_tokens"] == 10
    assert "gpu_ms" not in quote["bound"]
    assert quote["bound"]["output"] <= 10
    exact = (Decimal(quote["bound"]["input"]) + 2 * Decimal(quote["bound"]["output"])) / 1_000_000
    assert Decimal(quote["upper"]) == exact >= Decimal(answer.headers["headgate-cost"]) > 0


def test_a_quote_holds_and_records_nothing(gateway: Any) -> None:
    with gateway.client(gateway.key(project="quoted", budget="0.000001/total")) as poor:
        body = {"model": "echo", "messages": HELLO}
        assert Decimal(poor.post("/v1/quotes", json=body).json()["upper"]) > Decimal("0.000001")
        assert poor.post("/v1/chat/completions", json=body).status_code == 402
        (budget,) = poor.get("/v1/limits").json()["budgets"]
        assert (budget["spent"], budget["held"]) == ("0", "0")
        assert poor.get("/v1/usage").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "dimension"),
    [
        ({"model": "words", "prompt": "a b", "max_tokens": 3}, "output"),
        ({"model": "vectors", "input": ["a", "b c"]}, "input"),
        (
            {"model": "tensors", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]},
            "requests",
        ),
    ],
)
def test_every_task_is_quoted_by_its_own_body(client: httpx.Client, body: dict[str, Any], dimension: str) -> None:
    answer = client.post("/v1/quotes", json=body)
    assert answer.status_code == 200, answer.text
    quote = answer.json()
    assert quote["bound"][dimension] > 0
    assert (quote["upper"] is None) == (quote["price"] is None)


@pytest.mark.parametrize(
    ("body", "status", "path"),
    [
        ({"messages": HELLO}, 400, "model"),
        ({"model": 3}, 400, "model"),
        ({"model": "nope"}, 404, "model"),
        ({"model": "echo", "messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"model": "vectors", "messages": HELLO}, 400, "input"),
    ],
)
def test_a_bad_quote_is_refused_like_the_request(
    client: httpx.Client, body: dict[str, Any], status: int, path: str
) -> None:
    answer = client.post("/v1/quotes", json=body)
    assert (answer.status_code, answer.json()["path"]) == (status, path)


def test_a_quote_needs_the_right_to_the_model(gateway: Any) -> None:
    with gateway.client(gateway.key(project="narrow", models=["vectors"])) as narrow:
        answer = narrow.post("/v1/quotes", json={"model": "echo", "messages": HELLO})
        assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    with gateway.client(gateway.key(project="narrow", scopes=["usage"])) as reader:
        assert reader.post("/v1/quotes", json={"model": "vectors", "input": "a"}).status_code == 403

"""What the scenarios do not reach: odd vectors, clocks of a single call."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from headgate import errors
from headgate._core import batches, metering
from headgate._core.metering import Meter
from headgate._core.request import encode_query, encode_tags, new_key
from headgate._core.tickets import Journal, Ticket
from headgate.testing import FakeGateway, Refuse
from headgate.types import EmbeddingsResponse, Raw, Timeout
from headgate.types.embeddings import decode_floats
from headgate.types.responses import ResponseUsage


def embeddings(fingerprint: str) -> EmbeddingsResponse:
    made = EmbeddingsResponse(model="m")
    made.attach(Raw(200, {"headgate-fingerprint": fingerprint}, b"", ()))
    return made


def test_vectors_of_different_models_are_not_joined() -> None:
    with pytest.raises(errors.ResponseShapeError, match="'a', 'b'"):
        batches.joined([embeddings("a"), embeddings("b")])
    assert batches.joined([embeddings("a"), embeddings("a")]).cost is None


@pytest.mark.parametrize("text", ["!!", "AAA=", "AAAA"])
def test_vectors_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|32-bit"):
        decode_floats(text)
    with pytest.raises(ValueError, match="embedding"):
        EmbeddingsResponse.model_validate({"data": [{"embedding": text}]})


@pytest.mark.parametrize("value", [["a"], 5, None, [True]])
def test_vectors_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="list of numbers"):
        EmbeddingsResponse.model_validate({"data": [{"embedding": value}]})


def test_a_journal_is_bounded_and_forgets_no_cost() -> None:
    journal = Journal(size=2)
    for name, nano in (("a", 1), ("b", None), ("b", 2), ("b", None), ("c", 3), (None, 9)):
        journal.note(name, "m", nano)
    assert journal.rows() == {"b": ("m", 2), "c": ("m", 3)}
    assert [journal.is_first(key) for key in ("x", "x", "y", "z", "x", None)] == [
        True,
        False,
        True,
        True,
        True,
        True,
    ]


def test_a_ticket_is_settled_once() -> None:
    meter = Meter()
    ticket = Ticket(Journal(), (meter,), "m", None, None)
    for _ in range(3):
        ticket.settle(usage=None, nano=5, request_id=None)
    assert meter.cost.nano == 5
    assert meter.rows()[0].cost.nano == 5
    assert metering.current() == ()


def test_a_meter_inside_a_budget_reserves_nothing() -> None:
    client = FakeGateway().client()
    with client.meter() as meter, client.budget(max_cost="1") as budget:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}])
    assert meter.cost == budget.cost


def test_a_call_has_its_own_clocks() -> None:
    gateway = FakeGateway()
    client = gateway.client()
    client.models.list(timeout=Timeout(total=3))
    client.models.list(timeout=4)
    client.models.list(timeout=None)
    sent = [seen.headers.get("headgate-deadline-ms") for seen in gateway.seen]
    assert sent == ["3000", "4000", None]
    with pytest.raises(ValueError, match=r"timeout\.idle"):
        Timeout(idle=0)


def test_a_retry_without_a_deadline_says_its_number_alone() -> None:
    gateway = FakeGateway()
    client = gateway.client(timeout=None)
    gateway.script(Refuse(503, "overloaded", 1))
    client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}])
    assert gateway.seen[1].headers["headgate-attempt"] == "2"
    assert "headgate-deadline-ms" not in gateway.seen[1].headers


def test_words_of_responses_are_read_in_ours() -> None:
    usage = ResponseUsage.model_validate({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 2}})
    assert (usage.prompt_tokens, usage.cached_tokens) == (3, 2)
    assert ResponseUsage.model_validate(usage) is usage


def test_queries_and_tags() -> None:
    assert encode_query({"a": None}) == ""
    assert encode_query({"a": "x y", "b": 1}) == "?a=x+y&b=1"
    assert encode_tags({"team": "web/ui", "note": "a, b=c%ä"}) == "team=web/ui, note=a%2C%20b%3Dc%25%C3%A4"


FORKING = """
import os
from headgate._core.request import new_key
new_key()
child = os.fork()
os.write(1, new_key().encode() + b"\\n")
if child: os.waitpid(child, 0)
"""


def test_keys_are_fresh_in_every_thread_and_in_a_forked_child() -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = [key for made in pool.map(lambda _: [new_key() for _ in range(500)], range(8)) for key in made]
    assert len(set(keys)) == len(keys) == 4000
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True, timeout=60)
    assert len(set(done.stdout.split())) == 2

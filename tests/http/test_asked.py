"""What a call's headers ask beside its body: tags, a deadline, the number of the attempt."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import pytest
from headgate._core.request import encode_tags
from headgate_gateway.http.asked import read_tags
from headgate_gateway.http.problems import Problem
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import ADMIN_KEY

CHAT = "/v1/chat/completions"
BODY = {"model": "echo", "messages": [{"role": "user", "content": "a b c"}]}

texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)


def scope_of(value: bytes) -> Any:
    return {"headers": [(b"headgate-tags", value)]}


@given(st.dictionaries(texts.filter(bool), texts, max_size=16))
def test_tags_arrive_as_the_client_library_was_given_them(tags: dict[str, str]) -> None:
    encoded = encode_tags(tags).encode("ascii")
    assert read_tags(scope_of(encoded), {}) == tags
    assert all(32 <= byte < 127 for byte in encoded)


def test_tags_by_hand_may_be_plain_utf8() -> None:
    assert read_tags(scope_of("team=Übersetzung, x = 100%".encode()), {"x": "body"}) == {
        "team": "Übersetzung",
        "x": "100%",
    }
    assert read_tags(scope_of(b""), {"a": "b"}) == {"a": "b"}


@pytest.mark.parametrize(
    "value",
    [
        b"team", b"=x", b"a=1,,b=2", b"a=1, a=2", b"a=%ff", b"a=" + b"x" * 513,
        b",".join(b"t%d=1" % n for n in range(16)),
    ],
)  # fmt: skip
def test_bad_tags_are_refused_with_their_path(value: bytes) -> None:
    with pytest.raises(Problem) as caught:
        read_tags(scope_of(value), {"own": "tag"})
    assert (caught.value.code, caught.value.path) == ("invalid_request", "headgate-tags")


def test_tags_reach_the_record_and_totals_group_by_them(gateway: Any) -> None:
    with gateway.client(gateway.key(project="tagged")) as client:
        for team in ("web", "web", "a,b=c"):
            header = encode_tags({"team": team})
            assert client.post(CHAT, json=BODY, headers={"headgate-tags": header}).status_code == 200
        answer = client.post(CHAT, json=BODY)
        assert client.get(f"/v1/usage/{answer.json()['id']}").json()["tags"] == {}
        totals = client.get("/v1/usage?group_by=tag:team").json()["data"]
        assert {total["tag:team"]: total["requests"] for total in totals} == {"": 1, "a,b=c": 1, "web": 2}
        both = client.get("/v1/usage?group_by=model,tag:team,tag:other").json()["data"]
        assert {(total["model"], total["tag:team"], total["tag:other"]) for total in both} == {
            ("echo", "", ""), ("echo", "a,b=c", ""), ("echo", "web", ""),
        }  # fmt: skip
        for wrong in ("tag:", "tags", "tag:a,tag:a", ",".join(f"tag:{n}" for n in range(9))):
            refused = client.get("/v1/usage", params={"group_by": wrong})
            assert (refused.status_code, refused.json()["path"]) == (400, "group_by")


LONG = "x" * 512


@pytest.mark.parametrize("tags", [{"note": LONG}, {LONG: ""}])
def test_tags_as_long_as_promised_are_kept(client: httpx.Client, tags: dict[str, str]) -> None:
    answer = client.post(CHAT, json={**BODY, "metadata": tags})
    assert answer.status_code == 200, answer.text
    assert client.get(f"/v1/usage/{answer.json()['id']}").json()["tags"] == tags


@pytest.mark.parametrize("tags", [{"note": "a\0"}, {"\0": "a"}])
def test_tags_that_no_store_keeps_are_refused_with_their_path(client: httpx.Client, tags: dict[str, str]) -> None:
    in_body = client.post(CHAT, json={**BODY, "metadata": tags})
    in_head = client.post(CHAT, json=BODY, headers={"headgate-tags": encode_tags(tags)})
    assert [answer.status_code for answer in (in_body, in_head)] == [400, 400], (in_body.text, in_head.text)
    assert (in_body.json()["path"], in_head.json()["path"]) == (f"metadata.{next(iter(tags))}", "headgate-tags")


@pytest.mark.parametrize("name", ["headgate-deadline-ms", "headgate-attempt"])
@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "soon", "9" * 13])
def test_numbers_are_checked(client: httpx.Client, name: str, value: str) -> None:
    answer = client.post(CHAT, json=BODY, headers={name: value})
    assert (answer.status_code, answer.json()["path"]) == (400, name)


def test_a_deadline_ends_what_nobody_waits_for(run_gateway: Any) -> None:
    slow = {"id": "slow", "task": "chat", "backend": "echo", "options": {"delay_ms": 200}}
    models = [{**slow, "price": {"input": "1", "output": "2"}}]
    with run_gateway({"models": models}) as gateway, gateway.client(gateway.key(budget="1/total")) as client:
        body = {"model": "slow", "messages": [{"role": "user", "content": "w " * 1000}]}
        late = client.post(CHAT, json=body, headers={"headgate-deadline-ms": "300"})
        assert (late.status_code, late.json()["code"]) == (504, "upstream_timeout")
        (record,) = client.get("/v1/usage").json()["data"]
        assert (record["outcome"], record["cost"]) == ("timeout", "0")
        (budget,) = client.get("/v1/limits").json()["budgets"]
        assert budget["held"] == "0"
        body["messages"][0]["content"] = "w"  # type: ignore[index]
        in_time = client.post(CHAT, json=body, headers={"headgate-deadline-ms": "60000"})
        assert in_time.status_code == 200


def test_repeated_attempts_are_counted(gateway: Any, client: httpx.Client) -> None:
    for attempt in (1, 2, 9):
        assert client.post(CHAT, json=BODY, headers={"headgate-attempt": str(attempt)}).status_code == 200
    with gateway.client(ADMIN_KEY) as admin:
        metrics = admin.get("/metrics").text
    assert 'headgate_repeated_attempts_total{attempt="2"} 1.0' in metrics
    assert 'headgate_repeated_attempts_total{attempt="5+"} 1.0' in metrics
    assert 'attempt="1"' not in metrics

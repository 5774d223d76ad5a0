"""Usage, limits, admin, health, metrics, schema: what people and machines read beside the models' answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import msgspec
import pytest
from headgate_gateway.http import schema

from tests.http.conftest import ECHO
from tests.processes import ADMIN_KEY

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def gateway(request: pytest.FixtureRequest, gateway: Any, run_gateway: Any) -> Iterator[Any]:
    """The gateway of the other tests, and one whose store is a database."""
    if request.param == "sqlite":
        yield gateway
        return
    url = request.getfixturevalue("postgres_server").database()
    with run_gateway({**ECHO, "server": {"max_body_mb": 1}, "store": {"url": url}}) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: Any) -> str:
    """A key without limits."""
    made: str = gateway.key()
    return made


def ask(client: httpx.Client, text: str, **more: Any) -> httpx.Response:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], **more}
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.fixture
def project(gateway: Any, request: pytest.FixtureRequest) -> Any:
    """A client whose project holds this test's records only."""
    with gateway.client(gateway.key(project=request.node.name, budget="1/month", rpm=1000)) as client:
        yield client


def test_a_record_says_what_the_answer_said(project: httpx.Client) -> None:
    answer = ask(project, "one two three", metadata={"team": "web"})
    record = project.get(f"/v1/usage/{answer.json()['id']}").json()
    assert record["cost"] == answer.headers["headgate-cost"] == "0.000009"
    assert record["price"] == answer.headers["headgate-price"]
    assert record["model"] == "echo"
    assert record["outcome"] == "ok"
    assert record["usage"]["completion_tokens"] == record["usage"]["output"] == 3
    assert record["tags"] == {"team": "web"}
    assert [attempt["backend"] for attempt in record["attempts"]] == ["echo"]
    assert record["created_at"] <= record["finished_at"]


def test_records_come_in_pages_and_totals_add_up(gateway: Any, key: str, project: httpx.Client) -> None:
    with gateway.client(key) as elsewhere:
        ask(elsewhere, "word")
    ids = [ask(project, "word " * count).json()["id"] for count in (1, 2, 3)]
    first = project.get("/v1/usage?limit=2").json()
    assert [record["request_id"] for record in first["data"]] == ids[:2]
    assert first["has_more"] is True
    assert first["archived_until"] is None
    rest = project.get(f"/v1/usage?limit=2&after={first['after']}").json()
    assert [record["request_id"] for record in rest["data"]] == ids[2:]
    assert rest["has_more"] is False
    totals = project.get("/v1/usage?group_by=model").json()["data"]
    assert [(total["model"], total["requests"], total["cost"]) for total in totals] == [("echo", 3, "0.000018")]
    assert project.get("/v1/usage?group_by=key&bucket=1d").json()["data"][0]["bucket"].endswith("T00:00:00.000Z")
    (both,) = project.get("/v1/usage?group_by=model,key").json()["data"]
    assert (both["model"], both["key"][:4], both["requests"]) == ("echo", "key_", 3)
    late = project.get("/v1/usage?since=2100-01-01T00:00:00Z&limit=1").json()
    assert (late["data"], late["has_more"]) == ([], False)
    early = project.get("/v1/usage?until=2000-01-01&limit=1").json()
    assert (early["data"], early["has_more"]) == ([], False)
    everyone = gateway.admin("GET", "usage?group_by=project")["data"]
    assert len(everyone) > 1


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("group_by=colour", "group_by"),
        ("group_by=model,", "group_by"),
        ("group_by=model,model", "group_by"),
        ("limit=5&limit=6", "limit"),
        ("bucket=1y", "bucket"),
        ("since=yesterday", "since"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("after=-1", "after"),
        ("limt=5", "limt"),
        ("since=%C2%B2", "since"),
        ("limit=%C2%B2", "limit"),
    ],
)
def test_bad_queries_name_the_parameter(client: httpx.Client, query: str, path: str) -> None:
    answer = client.get(f"/v1/usage?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["path"] == path


def test_a_key_sees_its_own_project_only(project: httpx.Client, client: httpx.Client) -> None:
    theirs = ask(client, "secret").json()["id"]
    assert project.get(f"/v1/usage/{theirs}").status_code == 404
    assert project.get("/v1/usage").json()["data"] == []
    assert project.get("/v1/usage?project=prj_other").status_code == 403
    assert project.get("/v1/usage/req_nobody").status_code == 404


def test_limits_show_what_is_left(project: httpx.Client) -> None:
    ask(project, "one two three")
    found = project.get("/v1/limits").json()
    (budget,) = found["budgets"]
    assert (budget["scope"], budget["limit"], budget["spent"]) == ("key", "1", "0.000009")
    assert budget["remaining"] == "0.999991"
    assert [(limit["kind"], limit["limit"]) for limit in found["limits"]] == [("requests", 1000)]


def test_admin_makes_lists_changes_and_revokes(gateway: Any) -> None:
    made = gateway.admin("POST", "keys", json={"project": "office", "budget": "2.50/day", "models": ["echo"]})
    assert made["key"].startswith("hg_")
    listed = gateway.admin("GET", "keys?project=office")["data"]
    assert [key["id"] for key in listed] == [made["id"]]
    assert "key" not in listed[0]
    assert listed[0]["account"]["budgets"][0]["limit"] == "2.5"
    assert any(found["name"] == "office" for found in gateway.admin("GET", "projects?limit=1000")["data"])
    gateway.admin("POST", "budgets", json={"account": "office", "amount": "0.000001", "window": "total"})
    with gateway.client(made["key"]) as client:
        body = {"model": "echo", "messages": [{"role": "user", "content": "a b c"}]}
        assert client.post(CHAT, json=body).status_code == 402
    gateway.admin("DELETE", f"keys/{made['id']}")
    assert gateway.admin("GET", "keys?project=office")["data"][0]["revoked_at"]
    assert {model["id"] for model in gateway.admin("GET", "models")["data"]} >= {"echo", "vectors"}


def test_a_rotated_key_goes_on_for_as_long_as_was_asked(gateway: Any) -> None:
    old = gateway.admin("POST", "keys", json={"project": "turning", "models": ["echo"]})
    new = gateway.admin("POST", f"keys/{old['id']}/rotate", json={"overlap_s": 600})
    newest = gateway.admin("POST", f"keys/{new['id']}/rotate")
    expected = {old["key"]: 200, new["key"]: 401, newest["key"]: 200}
    for key, status in expected.items():
        with gateway.client(key) as client:
            body = {"model": "echo", "messages": [{"role": "user", "content": "a"}]}
            assert client.post(CHAT, json=body).status_code == status
    assert len(gateway.admin("GET", "keys?project=turning")["data"]) == 3


def test_a_soft_budget_that_is_spent_says_so_and_refuses_nothing(gateway: Any) -> None:
    made = gateway.admin("POST", "keys", json={"project": "gentle"})
    soft = {"account": "gentle", "amount": "0.000001", "window": "day", "hard": False}
    gateway.admin("POST", "budgets", json=soft)
    with gateway.client(made["key"]) as client:
        assert "headgate-over-budget" not in ask(client, "one").headers
        assert ask(client, "two").headers["headgate-over-budget"] == "project:day"
        body = {"model": "echo", "messages": [{"role": "user", "content": "three"}], "stream": True}
        assert client.post(CHAT, json=body).headers["headgate-over-budget"] == "project:day"
        (budget,) = client.get("/v1/limits").json()["budgets"]
        assert (budget["hard"], budget["remaining"]) == (False, "0")
    with gateway.client(ADMIN_KEY) as admin:
        assert 'headgate_over_budget_total{scope="project:day"}' in admin.get("/metrics").text


def test_a_price_with_tiers_and_credit_that_expires(gateway: Any) -> None:
    terms = {"input": "1", "output": "2", "minimum": "0.000001", "context": [{"above": 100, "input": "2"}]}
    made = gateway.admin("POST", "prices", json={"model": "tiered", "rates": terms, "any_model": True})
    assert made["versions"][0]["rates"] == terms
    gateway.admin("POST", "keys", json={"project": "prepaid"})
    far = 4_000_000_000_000_000
    gateway.admin("POST", "credits", json={"account": "prepaid", "amount": "5", "priority": 3, "expires_at": far})
    (found,) = [a for a in gateway.admin("GET", "projects?limit=1000")["data"] if a["name"] == "prepaid"]
    (credit,) = found["budgets"]
    assert (credit["kind"], credit["limit"], credit["priority"]) == ("credit", "5", 3)
    assert credit["ends_at"].startswith("2096-")
    listed, after = [], ""
    while after is not None:
        page = gateway.admin("GET", f"credits?limit=1&after={after}")
        assert page["data"] or page["after"] is None
        listed += page["data"]
        after = page["after"]
    (grant,) = [grant for grant in listed if grant["name"] == "prepaid"]
    assert (grant["account"], grant["amount"], grant["spent"], grant["held"]) == (found["id"], "5", "0", "0")
    assert (grant["priority"], grant["expires_at"]) == (3, credit["ends_at"])


def test_the_audit_finds_nothing(gateway: Any, client: httpx.Client) -> None:
    ask(client, "count me")
    report = gateway.admin("GET", "audit")
    assert report["ok"] is True, report


def test_health_needs_no_key(gateway: Any) -> None:
    with gateway.client() as stranger:
        assert stranger.get("/health/live").json() == {"status": "ok"}
        ready = stranger.get("/health/ready").json()
        assert ready["ready"] is True
        assert {model["state"] for model in ready["models"]} == {"ready"}
        assert stranger.get("/v2/health/live").json() == {"live": True}
        assert stranger.get("/v2/health/ready").json() == {"ready": True}
        assert stranger.get("/v2").json()["name"] == "headgate"
        assert stranger.get("/v2/models/tensors").status_code == 401


def test_only_the_web_pages_of_the_config_may_call(run_gateway: Any) -> None:
    page = "https://app.example.org"
    with (
        run_gateway({"server": {"cors_origins": [page]}}) as own,
        own.client() as browser,
    ):
        ask_first = {
            "origin": page,
            "access-control-request-method": "POST",
            "access-control-request-headers": "x-a",
        }
        preflight = browser.options(CHAT, headers=ask_first)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page
        assert preflight.headers["access-control-allow-headers"] == "x-a"
        refused = browser.post(CHAT, headers={"origin": page})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == page, "a page can read its errors"
        stranger = browser.options(CHAT, headers={**ask_first, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


def test_metrics_count_what_happened(gateway: Any, client: httpx.Client) -> None:
    ask(client, "measured")
    with gateway.client("admin-key-of-the-tests") as admin:
        text = admin.get("/metrics").text
    assert 'headgate_requests_total{code="ok",model="echo"}' in text
    assert 'headgate_usage_total{dimension="output",model="echo"}' in text


def test_the_inference_protocol(client: httpx.Client) -> None:
    assert client.get("/v2/models/tensors").json()["versions"] == ["3"]
    assert client.get("/v2/models/tensors/ready").json()["ready"] is True
    assert client.get("/v2/models/org/words/ready").status_code == 200
    assert client.get("/v2/models/tensors/versions/3/ready").status_code == 200
    assert client.get("/v2/models/tensors/versions/4").status_code == 404
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}
    for address in ("tensors/infer", "tensors/versions/3/infer"):
        answer = client.post(f"/v2/models/{address}", json={"id": "mine", "inputs": [tensor]}).json()
        assert answer["id"] == "mine"
        assert (answer["model_name"], answer["model_version"]) == ("tensors", "3")
        assert answer["outputs"] == [{**tensor, "data": [1.0, 2.0, 3.0, 4.0]}]


def test_the_schema_is_served_and_committed(gateway: Any) -> None:
    with gateway.client() as stranger:
        served = stranger.get("/schema")
    assert served.content == schema.openapi_bytes()
    committed = (ROOT / "docs" / "openapi.json").read_bytes()
    assert committed == served.content, "run: python -m headgate_gateway.http.schema docs/openapi.json"
    document = msgspec.json.decode(committed)
    assert document["openapi"] == "3.1.0"
    text = committed.decode()
    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text


def test_bad_pages_of_operators_name_the_parameter(gateway: Any) -> None:
    with gateway.client("admin-key-of-the-tests") as operator:
        answer = operator.get("/admin/v1/keys?limit=%C2%B2")
    assert (answer.status_code, answer.json()["path"]) == (400, "limit")


def test_an_audit_uses_the_pepper_that_the_config_names(run_gateway: Any, tmp_path: Any) -> None:
    pepper = tmp_path / "pepper"
    pepper.write_text("a pepper of the operator's own, outside the data folder")
    with run_gateway({"server": {"pepper": f"file:{pepper}"}}) as started:
        started.key()
        assert started.admin("GET", "audit")["ok"] is True


def test_prices_and_single_accounts_can_be_read(gateway: Any) -> None:
    prices = {price["model"]: price for price in gateway.admin("GET", "prices")["data"]}
    assert (prices["echo"]["source"], prices["echo"]["rates"]) == ("config", {"input": "1", "output": "2"})
    made = gateway.admin("POST", "keys", json={"project": "one-account"})
    assert gateway.admin("GET", "accounts/one-account")["id"] == made["project"]
    with gateway.client("admin-key-of-the-tests") as operator:
        assert operator.get("/admin/v1/accounts/nobody").status_code == 404
        assert operator.get("/admin/v1/prices?colour=red").status_code == 400


def test_head_is_get_without_the_body(gateway: Any, client: httpx.Client) -> None:
    with gateway.client() as stranger:
        for path in ("/health/live", "/health/ready", "/v2", "/schema"):
            answer = stranger.head(path)
            assert (answer.status_code, answer.content) == (200, b""), path
            assert answer.headers["x-request-id"].startswith("req_")
        assert stranger.head("/v1/models").status_code == 401
    assert int(client.head("/v1/models").headers["content-length"]) == len(client.get("/v1/models").content)
    assert client.head(CHAT).status_code == 405


def test_what_was_so_already_is_told(gateway: Any, project: httpx.Client, request: pytest.FixtureRequest) -> None:
    def changed(route: str, **command: Any) -> bool:
        return bool(gateway.admin("POST", route, json={"account": request.node.name, **command})["changed"])

    lifted = [
        ("budgets", {"window": "week"}),
        ("limits", {"kind": "tokens"}),
        ("limits", {"kind": "concurrency"}),
    ]
    for route, command in lifted:
        assert not changed(route, **command, amount=None)
        assert changed(route, **command, amount="1" if route == "budgets" else 1)
        assert changed(route, **command, amount=None)
        assert not changed(route, **command, amount=None)
    assert not changed("credits", amount="0")
    assert project.get("/v1/limits").json()["limits"][0]["kind"] == "requests"


def test_records_are_found_by_the_names_of_accounts(gateway: Any, request: pytest.FixtureRequest) -> None:
    name = request.node.name
    with gateway.client(gateway.key(project=name, organization=f"{name} & sons")) as client:
        asked = ask(client, "one").json()["id"]
        assert [record["request_id"] for record in client.get("/v1/usage?backend=echo").json()["data"]] == [asked]
        assert client.get("/v1/usage?backend=torch").json()["data"] == []
    for filters in ({"project": name}, {"organization": f"{name} & sons"}):
        (record,) = gateway.admin("GET", "usage", params=filters)["data"]
        assert record["request_id"] == asked
        ids = {field: record[field] for field in filters}
        assert gateway.admin("GET", "usage", params={**ids, "group_by": "model"})["data"][0]["requests"] == 1
        assert gateway.admin("GET", "usage", params={**filters, "group_by": "tag:a"})["data"][0]["requests"] == 1
    assert gateway.admin("GET", "usage", params={"project": f"{name} & sons"})["data"] == []


def test_tags_are_erased_by_operators_only(gateway: Any, project: httpx.Client) -> None:
    mine = ask(project, "mine", metadata={"user": "alice"}).json()["id"]
    others = project.post(
        CHAT,
        json={"model": "echo", "messages": [{"role": "user", "content": "x"}]},
        headers={"headgate-tags": "user=bob"},
    ).json()["id"]
    asked = {"tags": {"user": "alice"}}
    assert project.post("/admin/v1/tags/erase", json=asked).status_code == 403
    with gateway.client(ADMIN_KEY) as admin:
        own = project.get(f"/v1/usage/{mine}").json()["project"]
        for wrong, field in (
            ({}, "tags"),
            ({"tags": {"user": 1}}, "tags"),
            ({"tag": {}}, "tag"),
            ({**asked, "before": "soon"}, "before"),
            ({**asked, "after": "x"}, "after"),
        ):
            answer = admin.post("/admin/v1/tags/erase", json=wrong)
            assert answer.status_code == 400, answer.text
            assert answer.json()["path"].startswith(field)
        assert admin.post("/admin/v1/tags/erase", json={**asked, "project": "nowhere"}).status_code == 404
        done = admin.post("/admin/v1/tags/erase", json={**asked, "project": own}).json()
        assert done == {"erased": 1, "after": None, "copies": []}
        assert admin.post("/admin/v1/tags/erase", json={**asked, "project": own}).json()["erased"] == 0
        shown = admin.get(f"/admin/v1/usage/{mine}").json()
        assert admin.get("/admin/v1/audit", params={"full": "true"}).json()["ok"] is True
    assert (shown["tags"], shown["erased"]) == ({}, True)
    record = project.get(f"/v1/usage/{others}").json()
    assert (record["tags"], record["erased"]) == ({"user": "bob"}, False)
    totals = project.get("/v1/usage", params={"group_by": "tag:user"}).json()["data"]
    assert [(total["tag:user"], total["requests"]) for total in totals] == [("", 1), ("bob", 1)]


@pytest.mark.parametrize("route", ["keys", "credits"])
def test_a_time_that_no_calendar_has_is_refused_and_lists_stay_readable(gateway: Any, route: str) -> None:
    """Nanoseconds where microseconds are meant, say."""
    document = {"keys": {"project": "far"}, "credits": {"account": "far", "amount": "1"}}[route]
    gateway.admin("POST", "projects", json={"name": "far"})
    with gateway.client(ADMIN_KEY) as operator:
        late = {**document, "expires_at": 253_402_300_800_000_000}
        answer = operator.post(f"/admin/v1/{route}", json=late)
        assert operator.get(f"/admin/v1/{route}?limit=1000").status_code == 200
    assert (answer.status_code, answer.json().get("path")) == (400, "expires_at"), answer.text


@pytest.mark.parametrize(
    "path",
    [
        *("usage?model=%00", "usage?project=%00", "usage?key=a%00", "usage?group_by=tag:%00", "usage/%00"),
        *("keys?project=%00", "prices?model=%00", "accounts/%00", "log?after=0"),
    ],
)
def test_texts_that_no_store_keeps_can_be_asked_for(gateway: Any, path: str) -> None:
    with gateway.client(ADMIN_KEY) as operator:
        answer = operator.get(f"/admin/v1/{path}")
    assert answer.status_code in (200, 400, 404), answer.text

"""What an operator does with nodes on one PostgreSQL: migrate, bring the pepper, apply prices, read, audit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import pytest

from benchmarks.postgres_server import Server

Headgate = Callable[..., str]


@pytest.fixture
def run(headgate: Headgate, headgate_here: Headgate) -> Headgate:
    """Runs a command: `serve` in a process of its own."""

    def run(folder: Path, *arguments: str, code: int = 0) -> str:
        return (headgate if arguments[0] == "serve" else headgate_here)(folder, *arguments, code=code)

    return run


def node(folder: Path, url: str, price: str = "1") -> Path:
    """A node's folder, beside which the pepper lies."""
    folder.mkdir()
    (folder / "headgate.toml").write_text(
        f'''
[server]
pepper = "file:../pepper"
[store]
url = "{url}"
[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = {{ input = "{price}", output = "{price}" }}
'''
    )
    return folder


@pytest.fixture
def empty(postgres_server: Server) -> str:
    """The URL of a database without a schema."""
    return postgres_server.database(template="template1")


def test_nothing_begins_before_the_migration(tmp_path: Path, empty: str, run: Headgate) -> None:
    one = node(tmp_path / "one", empty)
    for command in (("serve", "--port", "0"), ("keys", "create", "-p", "p"), ("usage",), ("doctor",)):
        assert "headgate migrate" in run(one, *command, code=1)
    assert not (tmp_path / "pepper").exists()
    done = json.loads(run(one, "migrate", "--json"))
    assert done == {"store": "postgresql", "before": None, "after": done["after"], "waiting": []}
    assert "as before" in run(one, "migrate")
    made = json.loads(run(one, "keys", "create", "-p", "p", "--rpm", "60", "--json"))
    assert json.loads(run(one, "audit", "--json"))["ok"]
    with psycopg.connect(empty) as db:
        db.execute("ALTER TABLE limits DISABLE TRIGGER limits_append_only")
        db.execute("UPDATE limits SET amount = 600")
        db.execute("ALTER TABLE limits ENABLE TRIGGER limits_append_only")
    told = run(one, "audit", code=1)
    assert "limits row" in told
    assert made["id"] in told


def test_a_node_whose_pepper_did_not_come_along_is_refused(tmp_path: Path, database: str, run: Headgate) -> None:
    one = node(tmp_path / "one", database)
    run(one, "keys", "create", "-p", "p")
    (tmp_path / "pepper").rename(tmp_path / "kept")
    other = node(tmp_path / "other", database)
    for command in (("serve", "--port", "0"), ("keys", "list")):
        told = run(other, *command, code=1)
        assert "copy it from another node" in told
    assert not (tmp_path / "pepper").exists()
    (tmp_path / "pepper").write_text("made up")
    for command in (("serve", "--port", "0"), ("keys", "list"), ("audit",)):
        assert "give every node the same" in run(other, *command, code=1)
    (tmp_path / "kept").rename(tmp_path / "pepper")
    assert len(json.loads(run(other, "keys", "list", "--json"))["keys"]) == 1


def test_two_nodes_share_keys_prices_records_and_an_audit(
    tmp_path: Path, database: str, run: Headgate, serve: Any
) -> None:
    one, other = node(tmp_path / "one", database), node(tmp_path / "other", database, price="2")
    first = serve(one).wait()
    assert "headgate prices apply" in run(other, "serve", "--port", "0", code=1)
    assert len(json.loads(run(other, "prices", "apply", "--json"))["versions"]) == 1
    assert json.loads(run(other, "prices", "apply", "--json"))["versions"] == []
    second = serve(other).wait()
    key = json.loads(run(one, "keys", "create", "-p", "p", "--budget", "1/day", "--json"))["key"]
    costs = [gateway.ask(key)[1]["usage"]["cost"] for gateway in (first, second)]
    assert costs == ["0.000008", "0.000008"]  # two words in, two out, at the price that holds for both
    (total,) = json.loads(run(one, "usage", "--json"))["totals"]
    assert (total["records"], total["cost"]) == (2, "0.000016")
    page = json.loads(run(other, "usage", "--records", "1", "--json"))
    rest = json.loads(run(other, "usage", "--records", "9", "--after", str(page["after"]), "--json"))
    found = [record["request_id"] for record in (*page["records"], *rest["records"])]
    assert len(set(found)) == 2
    record = json.loads(run(one, "usage", "--request", found[1], "--json"))
    assert record["cost"] == "0.000008"
    assert json.loads(run(other, "audit", "--json"))["checked"]["usage_records"] == 2
    check_http(second.url, key, (other / ".headgate" / "admin.key").read_text(), found)
    assert (first.stop(), second.stop()) == (0, 0)
    assert json.loads(run(one, "audit", "--full", "--json"))["ok"]
    assert json.loads(run(one, "budgets", "list", "--json"))["budgets"][0]["spent"] == "0.000016"


def check_http(address: str, key: str, admin: str, requests: list[str]) -> None:
    """What a key and an operator read of these requests over HTTP."""

    def read(path: str, bearer: str) -> Any:
        with urlopen(
            Request(f"{address}{path}", headers={"authorization": f"Bearer {bearer}"}), timeout=30
        ) as got:
            return json.load(got)

    (row,) = read("/v1/usage?group_by=model,tag:team&bucket=1h", key)["data"]
    assert (row["model"], row["tag:team"], row["requests"], row["cost"]) == ("echo", "", 2, "0.000016")
    page = read("/v1/usage?limit=1", key)
    rest = read(f"/v1/usage?limit=1&after={page['after']}", key)
    assert [record["request_id"] for record in (*page["data"], *rest["data"])] == requests
    assert rest["after"] is None
    assert read(f"/v1/usage/{requests[0]}", key)["cost"] == "0.000008"
    assert {record["held"] for record in read("/admin/v1/usage", admin)["data"]} != {"0"}
    report = read("/admin/v1/audit?full=true", admin)
    assert report["ok"], report
    assert report["checked"]["usage_records"] == 2


def test_a_gateway_is_not_ready_while_its_database_is_gone(
    tmp_path: Path, database: str, postgres_server: Server, serve: Any
) -> None:
    gateway = serve(node(tmp_path / "one", database)).wait()
    admin = {"authorization": f"Bearer {(tmp_path / 'one' / '.headgate' / 'admin.key').read_text()}"}

    def ready() -> tuple[int, Any]:
        try:
            with urlopen(f"{gateway.url}/health/ready", timeout=30) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    def gauge() -> float:
        with urlopen(Request(f"{gateway.url}/metrics", headers=admin), timeout=30) as answer:
            (line,) = [line for line in answer if line.startswith(b"headgate_ledger_ready")]
            return float(line.split()[-1])

    assert (ready()[1]["reason"], gauge()) == (None, 1)
    with postgres_server.dead():
        gateway.until(lambda: ready()[0] == 503)
        document = ready()[1]
        assert (document["ledger"], document["ready"]) == ("unavailable", False)
        assert document["reason"] == "the ledger cannot use its store; its log says why"
        assert gauge() == 0
        with urlopen(f"{gateway.url}/health/live", timeout=30) as answer:
            assert answer.status == 200
    gateway.until(lambda: ready()[0] == 200)
    assert gauge() == 1
    assert gateway.stop() == 0


def test_doctor_looks_at_the_database(tmp_path: Path, database: str, run: Headgate) -> None:
    one = node(tmp_path / "one", database)
    found = {check["name"]: check for check in json.loads(run(one, "doctor", "--json", code=1).strip())["checks"]}
    assert not found["database safety"]["ok"]  # the server of the tests does not sync
    assert "fsync off" in found["database safety"]["found"]
    assert all(found[name]["ok"] for name in ("database", "schema", "pepper"))
    assert not {"sqlite", "disk sync"} & found.keys()
    (one / "headgate.toml").write_text('[store]\nurl = "postgresql://u:s3cret@127.0.0.1:1/d"\n')
    told = run(one, "doctor", code=1)
    assert "cannot be reached" in told
    assert "s3cret" not in told


def test_sqlite_needs_no_migrate(tmp_path: Path, run: Headgate) -> None:
    assert json.loads(run(tmp_path, "migrate", "--json"))["store"] == "sqlite"
    assert "nothing to do" in run(tmp_path, "migrate")


def test_a_user_without_rights_is_told_so(
    tmp_path: Path, database: str, postgres_server: Server, run: Headgate
) -> None:
    with psycopg.connect(postgres_server.url(), autocommit=True) as db:
        db.execute("CREATE ROLE guest LOGIN")
    one = node(tmp_path / "one", database.replace("postgres@", "guest:s3cret@"))
    (tmp_path / "pepper").write_text("made already")
    for command in (("keys", "list"), ("usage",), ("audit",), ("migrate",), ("doctor",)):
        told = run(one, *command, code=1)
        assert "permission denied" in told, command
        assert "s3cret" not in told

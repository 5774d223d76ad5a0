from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
import typer
from headgate_gateway.cli.administration import administration
from headgate_gateway.domain.commands import Done, GrantCredit
from headgate_gateway.layout import Layout

CONFIG = """
[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = { input = "1", output = "1" }
"""
TWO_WORKERS = f"[server]\nworkers = 2\n{CONFIG}"
SECOND = """
[[models]]
id = "second"
task = "chat"
backend = "echo"
price = { input = "2" }
"""


def configured(folder: Path, text: str = CONFIG) -> Path:
    (folder / "headgate.toml").write_text(text)
    return folder


def new_key(headgate: Callable[..., str], folder: Path, *arguments: str) -> str:
    return str(json.loads(headgate(folder, "keys", "create", "--project", "demo", "--json", *arguments))["key"])


def test_without_a_config_it_prints_all_that_a_first_try_needs(tmp_path: Path, serve: Any) -> None:
    gateway = serve(tmp_path).wait(r"curl http")
    assert "headgate init" in gateway.out
    assert str(tmp_path / ".headgate" / "admin.key") in gateway.out
    key = re.search(r"HEADGATE_API_KEY=(hg_\w+)", gateway.out)[1]
    status, answer = gateway.ask(key)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "Hello, gate!"
    assert answer["usage"]["cost"] == "0.0000015"
    assert gateway.stop() == 0


def test_killed_children_come_back_and_it_goes_on_answering(tmp_path: Path, serve: Any, headgate: Any) -> None:
    gateway = serve(configured(tmp_path, TWO_WORKERS)).wait()
    key = new_key(headgate, tmp_path)
    for name in ("worker 0", "echo/0", "ledger"):
        os.kill(gateway.child(name)["pid"], signal.SIGKILL)
        gateway.until(lambda name=name: gateway.child(name).get("restarts") == 1)
        gateway.until(lambda name=name: gateway.child(name)["state"] == "ready")
        gateway.until(lambda: _answers(gateway, key))
    assert gateway.stop() == 0


def _answers(gateway: Any, key: str) -> bool:
    try:
        return bool(gateway.ask(key)[0] == 200)
    except OSError:  # the killed worker had taken this connection
        return False


def test_nothing_outlives_a_killed_supervisor_and_the_next_serve_starts(tmp_path: Path, serve: Any) -> None:
    gateway = serve(configured(tmp_path)).wait()
    children = gateway.tree()
    assert len(children) == 3
    gateway.process.kill()
    gateway.process.wait()
    _, alive = psutil.wait_procs(children, 15)
    assert not alive
    second = serve(tmp_path).wait()
    assert second.stop() == 0


def test_keys_live_and_die_while_it_serves_alone(tmp_path: Path, serve: Any, headgate: Any) -> None:
    before = new_key(headgate, configured(tmp_path, TWO_WORKERS), "--name", "made before")
    gateway = serve(tmp_path).wait()
    assert gateway.ask(before)[0] == 200
    made = json.loads(headgate(tmp_path, "keys", "create", "-p", "demo", "--budget", "0.000004/total", "--json"))
    assert gateway.ask(made["key"])[0] == 200
    status, problem = gateway.ask(made["key"])
    assert (status, problem["code"]) == (402, "budget_exhausted")
    new = json.loads(headgate(tmp_path, "keys", "rotate", made["id"], "--json"))
    assert gateway.ask(made["key"])[1]["code"] == "invalid_api_key"
    assert gateway.ask(new["key"])[0] == 200
    headgate(tmp_path, "keys", "revoke", new["id"])
    assert gateway.ask(new["key"])[0] == 401
    first, *others = json.loads(headgate(tmp_path, "keys", "list", "--json"))["keys"]
    assert first["revoked_at"] is None
    assert {key["id"] for key in others if key["revoked_at"]} == {made["id"], new["id"]}
    last = json.loads(headgate(tmp_path, "keys", "rotate", first["id"], "--overlap", "600", "--json"))
    assert [gateway.ask(key)[0] for key in (before, last["key"])] == [200, 200]
    headgate(tmp_path, "keys", "revoke", first["id"])
    assert [gateway.ask(key)[0] for key in (before, last["key"])] == [401, 200]
    told = headgate(tmp_path, "serve", "--port", "0", code=1)
    assert told.strip() == f"{tmp_path}/.headgate is served already, by process {gateway.process.pid}"


def test_reload_applies_a_valid_file_whole(tmp_path: Path, serve: Any, headgate: Any) -> None:
    gateway = serve(configured(tmp_path)).wait()
    key = new_key(headgate, tmp_path)
    assert gateway.ask(key, model="second")[1]["code"] == "model_not_found"
    configured(tmp_path, CONFIG + SECOND)
    headgate(tmp_path, "reload")
    assert gateway.ask(key, model="second")[0] == 200
    configured(tmp_path, CONFIG.replace('"1"', '"3"') + SECOND)
    headgate(tmp_path, "reload")
    assert gateway.ask(key)[1]["usage"]["cost"] == "0.000012"
    configured(tmp_path, CONFIG + SECOND.replace("price", "prize"))
    told = headgate(tmp_path, "reload", code=2)
    assert 'models[1].prize: unknown key; did you mean "price"?' in told
    assert gateway.ask(key, model="second")[0] == 200


def test_a_reload_that_fails_half_way_moves_its_workers_back(tmp_path: Path, serve: Any, headgate: Any) -> None:
    gateway = serve(configured(tmp_path)).wait()
    key = new_key(headgate, tmp_path)
    layout = Layout.of(tmp_path / ".headgate")
    layout.worker_socket(2).mkdir()  # so that the third of the new ones cannot start
    configured(tmp_path, TWO_WORKERS.replace("2", "3", 1) + SECOND)
    assert "nothing was changed: worker 2 ended at its start" in headgate(tmp_path, "reload", code=2)
    assert [gateway.ask(key, model="second")[1]["code"] for _ in range(10)] == ["model_not_found"] * 10
    assert gateway.ask(key)[0] == 200
    layout.worker_socket(2).rmdir()
    headgate(tmp_path, "reload")
    assert gateway.ask(key, model="second")[0] == 200


def test_a_model_that_cannot_load_is_told_and_the_others_serve(tmp_path: Path, serve: Any, headgate: Any) -> None:
    (tmp_path / "empty").mkdir()
    broken = '[[models]]\nid = "broken"\ntask = "embed"\nbackend = "onnx"\nsource = "empty"\nrequired = false\n'
    gateway = serve(configured(tmp_path, CONFIG + broken)).wait()
    assert re.search(r"broken +embed +\S+ +failed", gateway.out)
    models = json.loads(headgate(tmp_path, "models", "list", "--json"))["models"]
    assert models[1]["state"] == "failed"
    assert str(tmp_path / "empty") in models[1]["detail"]
    key = new_key(headgate, tmp_path)
    assert gateway.ask(key)[0] == 200
    for path in ("/health/ready", "/v1/models", "/v1/models/broken", "/v2/models/broken/ready"):
        told = httpx.get(gateway.url + path, headers={"authorization": f"Bearer {key}"}).text
        assert "empty" in told, "clients are told which file"
        assert str(tmp_path) not in told, "and not where it lies"


def test_admin_over_http(tmp_path: Path, serve: Any, headgate_here: Any) -> None:
    headgate = headgate_here
    gateway = serve(configured(tmp_path)).wait()
    admin = {"HEADGATE_ADMIN_KEY": (tmp_path / ".headgate" / "admin.key").read_text()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    remote = ("--url", gateway.url, "--json")
    made = json.loads(headgate(elsewhere, "keys", "create", "-p", "far", "--budget", "1/day", *remote, **admin))
    assert gateway.ask(made["key"])[0] == 200
    keys = json.loads(headgate(elsewhere, "keys", "list", *remote, **admin))["keys"]
    assert keys == json.loads(headgate(tmp_path, "keys", "list", "--json"))["keys"]
    assert keys[0]["budgets"][0]["spent"] == "0.000004"
    prices = json.loads(headgate(elsewhere, "prices", "list", *remote, **admin))
    assert prices == json.loads(headgate(tmp_path, "prices", "list", "--json"))
    for command in (
        ("usage",),
        ("usage", "--by", "model,key", "--bucket", "1d"),
        ("usage", "--since", "2100-01-01"),
        ("audit",),
    ):
        told = json.loads(headgate(elsewhere, *command, *remote, **admin))
        assert told == json.loads(headgate(tmp_path, *command, "--json")), command
    (record,) = json.loads(headgate(elsewhere, "usage", "--records", "9", *remote, **admin))["records"]
    (here,) = json.loads(headgate(tmp_path, "usage", "--records", "9", "--json"))["records"]
    assert {name for name in here if record[name] != here[name]} <= {
        "admitted_at", "first_byte_at", "finished_at", "attempts",
    }  # fmt: skip
    one = headgate(elsewhere, "usage", "--request", record["request_id"], *remote, **admin)
    assert json.loads(one) == record
    assert "req_none" in headgate(elsewhere, "usage", "--request", "req_none", *remote, code=2, **admin)
    new = json.loads(headgate(elsewhere, "keys", "rotate", made["id"], *remote, **admin))
    assert [gateway.ask(key["key"])[0] for key in (made, new)] == [401, 200]
    headgate(elsewhere, "prices", "set", "other", "input=0.25", "--any-model", *remote, **admin)
    headgate(elsewhere, "limits", "set", "far", "requests", "5", *remote, **admin)
    for wrong in (
        ("limits", "set", "nowhere", "requests", "5"),
        ("budgets", "set", "far", "1,5/day"),
        ("keys", "create", "-p", "far", "--models", "none"),
    ):
        near = headgate(tmp_path, *wrong, code=2).strip()
        assert re.match(r"(headgate: )?[a-z]+: ", near), near
        assert near in headgate(elsewhere, *wrong, *remote, code=2, **admin)  # and the code of the problem
    (port,) = [
        check["found"]
        for check in json.loads(headgate(tmp_path, "doctor", "--json"))["checks"]
        if check["name"] == "port"
    ]
    assert gateway.url in port
    headgate(elsewhere, "keys", "revoke", made["id"], *remote, **admin)
    assert gateway.ask(made["key"])[0] == 401
    assert "HEADGATE_ADMIN_KEY" in headgate(elsewhere, "keys", "list", *remote, code=2)
    assert not (elsewhere / ".headgate").exists()


def test_the_bill_adds_up_and_the_audit_agrees(tmp_path: Path, serve: Any, headgate_here: Any) -> None:
    headgate = headgate_here
    gateway = serve(configured(tmp_path)).wait()
    key = json.loads(headgate(tmp_path, "keys", "create", "-p", "demo", "--json"))
    for _ in range(3):
        assert gateway.ask(key["key"])[0] == 200
    while_serving = json.loads(headgate(tmp_path, "usage", "--json"))
    (total,) = while_serving["totals"]
    assert (total["model"], total["records"], total["cost"]) == ("echo", 3, "0.000012")
    assert total["usage"] == {"input": 6, "output": 6, "requests": 3}
    assert json.loads(headgate(tmp_path, "audit", "--json"))["ok"] is True
    assert gateway.stop() == 0
    by_key = json.loads(headgate(tmp_path, "usage", "--by", "key", "--bucket", "1d", "--json"))
    assert (by_key["totals"][0]["key"], by_key["cost"]) == (key["id"], "0.000012")
    records = json.loads(headgate(tmp_path, "usage", "--records", "2", "--json"))
    assert [record["cost"] for record in records["records"]] == ["0.000004", "0.000004"]
    rest = json.loads(headgate(tmp_path, "usage", "--records", "9", "--after", str(records["after"]), "--json"))
    (last,) = rest["records"]
    assert json.loads(headgate(tmp_path, "usage", "--request", last["request_id"], "--json")) == last
    assert json.loads(headgate(tmp_path, "usage", "--until", "2020-01-01", "--json"))["totals"] == []
    assert "--by" in headgate(tmp_path, "usage", "--by", "weather", code=2)
    assert "everything re-derives" in headgate(tmp_path, "audit")
    _forge(tmp_path / ".headgate" / "headgate.sqlite", last["request_id"])
    told = headgate(tmp_path, "audit", "--json", code=1)
    assert last["request_id"] in told or "record" in told


def test_requests_in_flight_outlive_a_reload_and_a_stop(tmp_path: Path, serve: Any, headgate: Any) -> None:
    slow = CONFIG + "options = { tokens = 30, delay_ms = 100 }\n"
    gateway = serve(configured(tmp_path, slow)).wait()
    key = new_key(headgate, tmp_path)

    def in_flight() -> bool:
        return any(account["in_flight"] for account in gateway.admin("accounts")["data"])

    with ThreadPoolExecutor() as pool:
        for end in (lambda: headgate(tmp_path, "reload"), gateway.stop):
            answer = pool.submit(gateway.ask, key)
            gateway.until(in_flight)
            ended = end()
            status, document = answer.result(30)
            assert status == 200
            assert document["usage"]["completion_tokens"] == 30
    assert ended == 0


def _forge(store: Path, request_id: str) -> None:
    """Make one request cheaper, as somebody with the file could."""
    with contextlib.closing(sqlite3.connect(store)) as db, db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute("UPDATE usage_records SET cost = 1 WHERE request_id = ?", (request_id,))


def test_a_credit_whose_answer_was_lost_says_so(
    tmp_path: Path, serve: Any, headgate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path)
    gateway = serve(config).wait()
    headgate(tmp_path, "keys", "create", "-p", "p")
    (ledger,) = (child for child in gateway.tree() if "headgate_gateway.ledger" in child.cmdline())
    with pytest.raises(typer.Exit), administration(tmp_path / "headgate.toml") as admin:
        ledger.suspend()
        threading.Timer(1.0, ledger.kill).start()
        admin.carry_out(GrantCredit(account="p", amount="5"), Done)
    assert "look whether the credit was granted" in capsys.readouterr().err


FAR = """
[[models]]
id = "far"
task = "chat"
[[models.targets]]
backend = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "env:NOBODY_SET_THIS"
"""


def test_a_missing_credential_is_a_line_and_changes_nothing(tmp_path: Path, serve: Any, headgate: Any) -> None:
    (tmp_path / "alone").mkdir()
    told = headgate(configured(tmp_path / "alone", FAR), "serve", "--port", "0", code=2)
    assert "models[0].targets[0].api_key" in told
    assert "NOBODY_SET_THIS" in told
    assert "Traceback" not in told
    gateway = serve(configured(tmp_path)).wait()
    key = new_key(headgate, tmp_path)
    worker = gateway.child("worker 0")["pid"]
    configured(tmp_path, CONFIG + FAR)
    assert "NOBODY_SET_THIS" in headgate(tmp_path, "reload", code=2)
    assert gateway.child("worker 0")["pid"] == worker
    assert gateway.ask(key)[0] == 200

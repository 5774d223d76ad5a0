from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

Headgate = Callable[..., str]


def test_init_writes_what_check_accepts(tmp_path: Path, headgate: Headgate) -> None:
    headgate(tmp_path, "init")
    assert json.loads(headgate(tmp_path, "check", "--json"))["models"] == ["echo"]
    assert "exists already" in headgate(tmp_path, "init", code=2)
    headgate(tmp_path, "init", "--force")


def test_check_tells_every_problem(tmp_path: Path, headgate: Headgate) -> None:
    (tmp_path / "headgate.toml").write_text(
        '[server]\nprt = 1\n[[models]]\nid = "a"\ntask = "chat"\nbackend = "ecko"\n'
    )
    assert "headgate.toml:2: server.prt: unknown key" in headgate(tmp_path, "check", code=2)
    (tmp_path / "headgate.toml").write_text('[[models]]\nid = "a"\ntask = "chat"\nbackend = "ecko"\n')
    told = json.loads(headgate(tmp_path, "check", "--json", code=2))
    assert told["problems"][0]["path"] == "models[0].backend"
    assert 'did you mean "echo"' in told["problems"][0]["message"]
    assert "headgate init" in headgate(tmp_path, "check", "--config", "none.toml", code=2)


def test_plugins_and_doctor(tmp_path: Path, headgate: Headgate) -> None:
    assert [p["name"] for p in json.loads(headgate(tmp_path, "plugins", "--json"))["plugins"]] == [
        *("echo", "onnx", "openai", "torch")
    ]
    (tmp_path / "headgate.toml").write_text("[server]\nport = 0\n")
    checks = json.loads(headgate(tmp_path, "doctor", "--json"))["checks"]
    assert {"sqlite", "disk sync", "port", "onnxruntime", "plugins"} <= {check["name"] for check in checks}


def test_routes_are_explained(tmp_path: Path, headgate: Headgate) -> None:
    targets = "".join(
        f'[[models.targets]]\nbackend = "openai"\nbase_url = "http://h/v1"\n'
        f'model = "{name}"\npriority = {priority}\nweight = {weight}\n'
        for name, priority, weight in (("spare", 1, 1), ("big", 0, 3), ("small", 0, 1))
    )
    (tmp_path / "headgate.toml").write_text(f'[[models]]\nid = "m"\ntask = "chat"\naliases = ["n"]\n{targets}')
    routes = json.loads(headgate(tmp_path, "routes", "explain", "n", "--json"))["routes"]
    assert [(r["target"], r["share"]) for r in routes] == [("big", 0.75), ("small", 0.25), ("spare", 1.0)]
    assert "there are: m" in headgate(tmp_path, "routes", "explain", "x", code=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("keys", "create"), "project"),
        (("keys", "create", "-p", "x", "--budget", "1.00"), "budget"),
        (("keys", "create", "-p", "x", "--budget", "1/decade"), "budget"),
        (("keys", "create", "-p", "x", "--expires", "soon"), "--expires"),
        (("keys", "create", "-p", "x", "--rpm", "0"), "rpm"),
        (("keys", "revoke", "key_none"), "key_none"),
        (("budgets", "set", "nobody", "1/day"), "nobody"),
        (("limits", "set", "x", "speed", "1"), "requests, tokens, concurrency"),
        (("prices", "set", "echo", "input"), "RATE=AMOUNT"),
        (("prices", "set", "echo", "inptu=1"), "inptu"),
        (("models", "import", "x", "--id", "x", "--backend", "nope"), "nope"),
        (("models", "import", "x", "--id", "x", "--backend", "onnx", "--task", "sing"), "sing"),
        (("nonsense",), "nonsense"),
    ],
)
def test_bad_input_exits_2_and_says_what_was_expected(
    tmp_path: Path, headgate_here: Headgate, arguments: tuple[str, ...], told: str
) -> None:
    assert told in headgate_here(tmp_path, *arguments, code=2)


def test_money_on_a_store_that_nobody_serves(folder_of_either_store: Path, headgate_here: Headgate) -> None:
    folder, headgate = folder_of_either_store, headgate_here
    made = json.loads(
        headgate(folder, "keys", "create", "-p", "p", "--budget", "1.50/month", "--rpm", "9", "--json")
    )
    headgate(folder, "budgets", "set", "p", "20/day", "--soft")
    headgate(folder, "limits", "set", "p", "concurrency", "3")
    headgate(folder, "credits", "grant", "p", "5")
    accounts = {a["id"]: a for a in json.loads(headgate(folder, "accounts", "--json"))["accounts"]}
    key, project = accounts[made["id"]], accounts[made["project"]]
    assert (key["budgets"][0]["limit"], key["budgets"][0]["window"], key["limits"]) == (
        "1.5",
        "month",
        {"requests": 9},
    )
    assert {(b["window"], b["limit"], b["hard"]) for b in project["budgets"]} >= {("day", "20", False)}
    assert project["limits"] == {"concurrency": 3}
    headgate(folder, "budgets", "remove", "p", "day")
    headgate(folder, "limits", "remove", "p", "concurrency")
    budgets = json.loads(headgate(folder, "budgets", "list", "--json"))["budgets"]
    assert "day" not in {budget["window"] for budget in budgets}
    assert json.loads(headgate(folder, "limits", "list", "--json"))["limits"] == [
        {"account": made["id"], "name": "", "kind": "requests", "limit": 9}
    ]
    price = json.loads(headgate(folder, "prices", "set", "echo", "input=0.2", "--json"))
    assert len(price["versions"]) == 1
    rotated = json.loads(headgate(folder, "keys", "rotate", made["id"], "--json"))
    headgate(folder, "keys", "revoke", rotated["id"])
    listed = json.loads(headgate(folder, "keys", "list", "--json"))["keys"]
    assert {key["id"] for key in listed} == {made["id"], rotated["id"]}
    assert all(key["revoked_at"] or key["expires_at"] for key in listed)
    assert json.loads(headgate(folder, "audit", "--json"))["ok"]


def test_tables_are_for_people(tmp_path: Path, headgate_here: Headgate) -> None:
    headgate_here(tmp_path, "keys", "create", "-p", "p", "--budget", "1/month")
    (told,) = [line.split() for line in headgate_here(tmp_path, "budgets", "list").splitlines() if "key_" in line]
    assert told[1:4] == ["month", "yes", "1"]


def test_the_admin_key_is_private(tmp_path: Path, headgate: Headgate) -> None:
    headgate(tmp_path, "keys", "create", "-p", "p")
    for name in ("admin.key", "pepper", "headgate.sqlite"):
        assert (tmp_path / ".headgate" / name).stat().st_mode & 0o077 == 0


def test_prices_in_force_are_listed(tmp_path: Path, headgate_here: Headgate) -> None:
    (tmp_path / "headgate.toml").write_text(
        '[[models]]\nid = "echo"\ntask = "chat"\nbackend = "echo"\nprice = { input = "0.15" }\n'
    )
    made = json.loads(headgate_here(tmp_path, "keys", "create", "-p", "p", "--json"))
    headgate_here(tmp_path, "prices", "set", "echo", "input=0.2", "output=1")
    headgate_here(tmp_path, "prices", "set", "echo", "input=0", "--for", made["id"])
    listed = json.loads(headgate_here(tmp_path, "prices", "list", "--json"))["prices"]
    assert [(p["source"], p["scope"], p["rates"]) for p in listed] == [
        ("admin", "", {"input": "0.2", "output": "1"}),
        ("config", "", {"input": "0.15"}),
        ("key", made["id"], {"input": "0"}),
    ]


def test_the_version_is_told(tmp_path: Path, headgate: Headgate) -> None:
    assert headgate(tmp_path, "--version").split() == ["headgate", version("headgate-gateway")]

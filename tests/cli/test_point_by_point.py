"""What an operator does in a day, typed: here with the store at hand, and against a gateway elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Headgate = Callable[..., str]


def test_accounts_credit_usage_and_the_log(
    tmp_path: Path, headgate_here: Headgate, serve: Callable[..., Any]
) -> None:
    gateway = serve(tmp_path).wait()
    admin_key = (tmp_path / ".headgate" / "admin.key").read_text().strip()

    def here(*arguments: str, code: int = 0) -> Any:
        at = 1 if arguments[0] in ("usage", "log", "audit") else 2
        told = headgate_here(
            tmp_path, *arguments[:at], "--json", *arguments[at:], code=code, HEADGATE_ADMIN_KEY=admin_key
        )
        return told if code else json.loads(told)

    def there(*arguments: str, code: int = 0) -> Any:
        at = 1 if arguments[0] in ("usage", "log", "audit") else 2
        return here(*arguments[:at], "--url", gateway.url, *arguments[at:], code=code)

    for name, ask in (("near", here), ("far", there)):
        made = ask("accounts", "create", name, "--organization", "acme")
        assert ask("accounts", "create", name, "--organization", "acme")["id"] == made["id"]
        organization = ask("accounts", "create", "acme", "--kind", "organization")
        assert made["parent"] == organization["id"]
        key = ask("keys", "create", "-p", name, "--organization", "acme", "--models", "echo")
        ask("credits", "grant", name, "5", "--priority", "7", "--expires", "2100-01-01")
        ask("credits", "grant", name, "2")
        ask("credits", "grant", name, "--", "-1")
        grants = [grant for grant in ask("credits", "list")["credits"] if grant["name"] == name]
        assert [(grant["amount"], grant["priority"], grant["expires_at"]) for grant in grants] == [
            ("5", 7, "2100-01-01T00:00:00Z"), ("1", 100, None),
        ]  # fmt: skip
        assert gateway.ask(key["key"])[0] == 200
        assert [grant["spent"] == "0" for grant in ask("credits", "list")["credits"]][-2:].count(False) == 1
        only = ("--only", f"project={made['id']}")
        (total,) = ask("usage", "--by", "model,tag:team", *only)["totals"]
        assert (total["model"], total["tag:team"], total["records"]) == ("echo", "", 1)
        (record,) = ask("usage", "--records", "5", *only)["records"]
        assert record["project_id"] == made["id"]
        assert "--only" in ask("usage", "--only", "colour=red", code=2)
        assert "--by" in ask("usage", "--by", "colour", code=2)
        ask("keys", "revoke", key["id"])
        assert gateway.ask(key["key"])[0] == 401
        entries, after = [], 0
        while after is not None:
            page = ask("log", "--after", str(after), "--limit", "5")
            entries += page["entries"]
            after = page["after"]
        done = [entry["action"] for entry in entries if entry["target"] in (made["id"], key["id"])]
        assert done == ["project.create", "key.create", *["credit.grant"] * 3, "key.revoke"]
    assert here("audit")["ok"]


def test_tags_are_erased_here_and_elsewhere(
    tmp_path: Path, headgate_here: Headgate, serve: Callable[..., Any]
) -> None:
    gateway = serve(tmp_path).wait()
    admin = {"HEADGATE_ADMIN_KEY": (tmp_path / ".headgate" / "admin.key").read_text().strip()}
    key = json.loads(headgate_here(tmp_path, "keys", "create", "-p", "shop", "--json"))["key"]
    alice, bob, carol = (gateway.ask(key, metadata={"user": name})[1]["id"] for name in ("alice", "bob", "carol"))

    def erase(*arguments: str, code: int = 0) -> str:
        return headgate_here(tmp_path, "tags", "erase", *arguments, code=code, **admin)

    def tags(request: str) -> tuple[dict[str, str], bool]:
        record = json.loads(headgate_here(tmp_path, "usage", "--request", request, "--json"))
        return record["tags"], record["erased"]

    assert json.loads(erase("user=alice", "--json")) == {"erased": 1, "copies": []}
    assert erase("user=bob", "--project", "shop", "--url", gateway.url) == "erased the tags of 1 request\n"
    assert "erased the tags of 0" in erase("--before", "2026-01-01")
    assert [tags(request) for request in (alice, bob)] == [({}, True)] * 2
    assert tags(carol) == ({"user": "carol"}, False)
    far = headgate_here(tmp_path, "usage", "--request", bob, "--json", "--url", gateway.url, **admin)
    assert json.loads(far)["erased"] is True
    for wrong, told in (
        ((), "NAME=VALUE"),
        (("user",), '"user"'),
        (("a=1", "a=2"), '"a=2"'),
        (("--before", "soon"), "--before"),
        (("a=1", "--project", "nowhere"), "nowhere"),
    ):
        assert told in erase(*wrong, code=2)
        assert told in erase(*wrong, "--url", gateway.url, code=2)
    log = json.loads(headgate_here(tmp_path, "log", "--json"))["entries"]
    assert [(e["actor"], e["detail"]["rows"]) for e in log if e["action"] == "personal.erase"] == [
        ("cli", 1), ("admin", 1),
    ]  # fmt: skip
    assert "alice" not in json.dumps(log)
    gateway.stop()
    assert erase("--before", "2100-01-01") == "erased the tags of 1 request\n"
    assert tags(carol) == ({}, True)
    for full in ((), ("--full",)):
        headgate_here(tmp_path, "audit", *full)
    assert not [
        path for path in (tmp_path / ".headgate").glob("headgate.sqlite*") if b"carol" in path.read_bytes()
    ]

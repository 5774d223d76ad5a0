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

"""`headgate prices` as an operator types it, with a ledger of the moment and against a gateway elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Headgate = Callable[..., str]

CONFIG = """
[[models]]
id = "echo"
task = "chat"
backend = "echo"
aliases = ["parrot"]
price = { input = "1", output = "2" }
"""


def test_prices_from_plan_to_history_here_and_elsewhere(
    tmp_path: Path, headgate_here: Headgate, serve: Callable[..., Any]
) -> None:
    (tmp_path / "headgate.toml").write_text(CONFIG)
    gateway = serve(tmp_path, "--config", "headgate.toml").wait()
    admin_key = (tmp_path / ".headgate" / "admin.key").read_text().strip()

    def there(*arguments: str, code: int = 0) -> str:
        secret = {"HEADGATE_ADMIN_KEY": admin_key}
        return headgate_here(tmp_path, *arguments, "--url", gateway.url, code=code, **secret)

    def here(*arguments: str, code: int = 0) -> str:
        return headgate_here(tmp_path, *arguments, code=code)

    tiers = ("--context", "200000:input=6,output=8", "--from", "2100-01-01T00:00:00.000001Z")
    here("prices", "set", "echo", "input=3", "output=4", "minimum=0.01", *tiers)
    (plan,) = [one for one in listed(there("prices", "list", "--json")) if one["state"] == "coming"]
    assert plan["rates"]["context"] == [{"above": 200_000, "input": "6", "output": "8"}]
    assert (plan["effective_at"], plan["rates"]["minimum"]) == ("2100-01-01T00:00:00.000001Z", "0.01")
    told = there("prices", "list")
    assert "input 3, output 4" in told
    assert "at least 0.01" in told
    there("keys", "create", "-p", "web", "--organization", "acme")
    there("prices", "set", "echo", "margin=20%", "--for", "acme")
    there("prices", "cancel", plan["id"])
    there("prices", "withdraw", "echo", "--for", "acme", "--from", "2101-01-01")
    for ask in (here, there):
        found = listed(ask("prices", "list", "--history", "--model", "echo", "--json"))
        told = [(one["source"], one["state"], one["rates"].get("input"), one["margin"]) for one in found]
        assert sorted(told, key=str) == [
            ("admin", "coming", None, None), ("admin", "replaced", "3", None), ("config", "in_force", "1", None),
            ("organization", "coming", "1.2", "20"), ("organization", "coming", None, None),
            ("organization", "in_force", "1.2", "20"), ("organization", "replaced", "3.6", "20"),
        ]  # fmt: skip
        assert "did you mean 'echo'" in ask("prices", "set", "ecko", "input=1", code=2)
        assert "another name of 'echo'" in ask("prices", "set", "parrot", "input=1", code=2)
        assert "past" in ask("prices", "set", "echo", "input=1", "--from", "2020-01-01", code=2)
        assert "did you mean 'parrot'" in ask("keys", "create", "-p", "web", "--models", "parot", code=2)
        assert "there is no price" in ask("prices", "cancel", "prc_none", code=2)
    assert json.loads(here("audit", "--json"))["ok"]


def test_a_plugins_table_prices_what_the_config_does_not(tmp_path: Path, headgate: Headgate) -> None:
    (tmp_path / "site" / "pricey-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "pricey-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pricey\nVersion: 1.0\n"
    )
    (tmp_path / "site" / "pricey-1.0.dist-info" / "entry_points.txt").write_text(
        "[headgate.plugins]\npricey = pricey\n"
    )
    (tmp_path / "site" / "pricey.py").write_text(
        "from headgate_plugin_api import hookimpl\nHEADGATE_API = 1\n"
        "@hookimpl\ndef headgate_register_prices(register):\n    register('plain', {'input': '0.5'})\n"
    )
    config = (
        CONFIG + '[[models]]\nid = "plain"\ntask = "chat"\nbackend = "echo"\n[plugins]\nenable = ["pricey"]\n'
    )
    (tmp_path / "headgate.toml").write_text(config)
    for _ in range(2):  # the second time nothing has changed
        told = headgate(tmp_path, "prices", "list", "--json", "--history", PYTHONPATH=str(tmp_path / "site"))
        found = {one["model"]: (one["source"], one["rates"]) for one in listed(told)}
        assert len(listed(told)) == 2
        assert found["plain"] == ("plugin", {"input": "0.5"})
        assert found["echo"] == ("config", {"input": "1", "output": "2"})


def listed(told: str) -> list[dict[str, Any]]:
    prices: list[dict[str, Any]] = json.loads(told)["prices"]
    return prices

"""`headgate models load` and `unload`, and their routes, against a whole gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from headgate_gateway.http.answers import ModelControlled

CONFIG = """
[[models]]
id = "org/echo"
task = "chat"
backend = "echo"
aliases = ["echo"]
[[models]]
id = "far"
task = "chat"
[[models.targets]]
backend = "openai"
base_url = "http://127.0.0.1:9"
"""


def test_models_are_unloaded_and_loaded(tmp_path: Path, serve: Any, headgate_here: Callable[..., str]) -> None:
    headgate = headgate_here
    (tmp_path / "headgate.toml").write_text(CONFIG)
    assert "nothing serves" in headgate(tmp_path, "models", "load", "org/echo", code=1)
    gateway = serve(tmp_path).wait()
    key = json.loads(headgate(tmp_path, "keys", "create", "-p", "p", "--json"))["key"]
    assert gateway.ask(key)[0] == 200

    told = json.loads(headgate(tmp_path, "models", "unload", "org/echo", "--json"))
    assert told == {"id": "org/echo", "state": "unloaded"}
    listed = json.loads(headgate(tmp_path, "models", "list", "--json"))["models"]
    assert [model["state"] for model in listed] == ["unloaded", "ready"]
    assert json.loads(headgate(tmp_path, "models", "--json"))["models"] == listed, "a group lists by default"

    def refused() -> Any:
        status, answer = gateway.ask(key)
        return (status, answer["code"]) == (503, "model_loading") and "unloaded" in answer["detail"]

    gateway.until(refused)
    environment = {"HEADGATE_ADMIN_KEY": (tmp_path / ".headgate" / "admin.key").read_text().strip()}
    far = ("--url", gateway.url)
    loaded = json.loads(headgate(tmp_path, "models", "load", "echo", *far, "--json", **environment))
    assert loaded == {"id": "org/echo", "state": "ready"}
    assert msgspec.convert(loaded, ModelControlled)
    gateway.until(lambda: gateway.ask(key)[0] == 200)
    here, there = (
        json.loads(headgate(tmp_path, "models", "list", *where, "--json", **environment))["models"]
        for where in ((), far)
    )
    assert [{name: model[name] for name in here[0]} for model in there] == here
    assert "model_not_found" in headgate(tmp_path, "models", "load", "nobody", *far, code=2, **environment)
    assert "runs elsewhere" in headgate(tmp_path, "models", "unload", "far", code=2)
    noted = [
        (entry["actor"], entry["action"], entry["target"])
        for entry in json.loads(headgate(tmp_path, "log", "--json"))["entries"]
        if entry["action"].startswith("model.")
    ]
    assert noted == [("cli", "model.unload", "org/echo"), ("admin", "model.load", "org/echo")]
    told = headgate(tmp_path, "log")
    assert "key.create" in told
    assert not re.search(r"None|name ,|\[", told), "what is not set is not said"
    assert gateway.stop() == 0

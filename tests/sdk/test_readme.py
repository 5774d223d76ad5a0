"""Every example of the README runs, in order, against the fake gateway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import headgate
import pytest
from headgate.testing import FakeGateway, FakeModel
from headgate.testing.answers import default_models

README = Path(__file__).parents[2] / "sdk" / "README.md"


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cities = FakeModel(answer=lambda _: '{"name": "Vienna", "people": 2000000}')
    gateway = FakeGateway({**default_models(), "cities": cities})

    def without_transport(make: Any) -> Any:
        return lambda **options: make(
            **{name: value for name, value in options.items() if name not in {"transport", "wiring"}}
        )

    monkeypatch.setattr(headgate, "Headgate", without_transport(gateway.client))
    monkeypatch.setattr(headgate, "AsyncHeadgate", without_transport(gateway.async_client))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 11
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "Say hello to the world" in printed
    assert "(1000, 8)" in printed
    assert "not sent: a budget of 0.00001" in printed
    assert "NotFound" in printed
    assert "Vienna 2000000" in printed
    assert "Vienna: 2 days of sun" in printed
    assert "POST http://headgate.fake/v1/chat/completions 200" in printed
    assert "echo took 1 attempts" in printed


def test_every_error_of_the_tree_is_explained() -> None:
    text = README.read_text()
    abstract = {"HeadgateError", "StatusError", "Conflict", "ConfigurationError", "OfflineError"}
    for name in set(headgate._ERRORS) - abstract:
        short = name.replace("Idempotency", "-")
        assert f"`{name}`" in text or f"`{short}`" in text, name

"""The Python of the repository's README runs as it stands, against a gateway that serves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import ECHO, Gateway

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    serving = Gateway(tmp_path, ECHO, workers=2).start()
    yield serving
    serving.close()


def test_the_python_runs(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADGATE_BASE_URL", gateway.url)
    key = gateway.key()
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        mine = block.replace("hg_...", key).replace("http://127.0.0.1:8080", gateway.url)
        exec(compile(mine, str(README), "exec"), names)
        names["client"].close()
    told = capsys.readouterr().out.splitlines()
    assert told == ["Hello, canal! 0.000006 4", "Hello, canal!", "0.000006", "Hello, canal!"]

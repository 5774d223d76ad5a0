"""The access log: one line a request, in both forms; a client's text stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from headgate_gateway.telemetry.access import AccessLog
from headgate_gateway.telemetry.lines import LineWriter


class Kept(LineWriter):
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def close(self) -> None:
        return


def noted(*, text: bool, **facts: Any) -> str:
    kept = Kept()
    log = AccessLog("worker 0", text=text, later=lambda *_: None, writer=kept)
    log.note("req_1", "POST", facts.pop("path", "/v1/x"), status=200, code="ok", seconds=0.0123456, **facts)
    assert kept.text == "", "lines are collected"
    log.close()
    return kept.text


def test_a_document_leaves_out_what_is_not_known() -> None:
    line = json.loads(noted(text=False, model="m", cost="0.1"))
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request",
        "level": "info",
        "process": "worker 0",
        "request_id": "req_1",
        "method": "POST",
        "path": "/v1/x",
        "status": 200,
        "code": "ok",
        "model": "m",
        "cost": "0.1",
        "duration_ms": 12.35,
    }


@pytest.mark.parametrize("text", [True, False])
def test_a_client_cannot_write_lines_of_its_own(text: bool) -> None:
    line = noted(text=text, path="/v1/\n\x1b[31mFORGED", model="x" * 1000)
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert len(line) < 1000

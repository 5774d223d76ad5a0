from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging, structlog, sys
from headgate_gateway.settings import Log
from headgate_gateway.telemetry import logs
logs.configure(Log(level="info", format={form!r}), "worker 3")
structlog.get_logger().info("settled", cost="0.1")
structlog.get_logger().debug("not shown")
logging.getLogger("some.library").warning("careful: %s", 5)
logging.getLogger("uvicorn.access").info("not shown")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("broke")
{more}
"""


def run(form: str, more: str = "") -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(form=form, more=more)], capture_output=True, text=True
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_json_is_one_document_a_line_from_everybody() -> None:
    code, lines = run("json")
    documents = [json.loads(line) for line in lines]
    assert code == 0
    assert [(d["event"], d["level"], d["process"]) for d in documents] == [
        ("settled", "info", "worker 3"),
        ("careful: 5", "warning", "worker 3"),
        ("broke", "error", "worker 3"),
    ]
    assert documents[0]["cost"] == "0.1"
    assert "ZeroDivisionError" in documents[2]["exception"]
    assert documents[0]["timestamp"].endswith("Z")


def test_text_is_for_reading() -> None:
    _, lines = run("text")
    assert "settled" in lines[0]
    assert not lines[0].startswith("{")


def test_auto_is_json_where_nobody_watches() -> None:
    assert run("auto")[1][0].startswith("{")


def test_a_closed_stderr_ends_nothing() -> None:
    code, _ = run("json", "sys.stderr.close(); structlog.get_logger().info('into the void'); sys.exit(0)")
    assert code == 0

"""What operators and init systems do to a gateway that serves: no request and no charge is lost by it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse

import psutil
import pytest

from tests.deployment import SLOW, Gateway

WORDS = [f"w{number}" for number in range(60)]


def stream(gateway: Gateway, key: str) -> HTTPResponse:
    """A stream of a second or two, of which the first bytes have come."""
    document = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": " ".join(WORDS)}]}
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    headers = {"authorization": f"Bearer {key}", "connection": "close"}
    connection.request("POST", "/v1/chat/completions", json.dumps(document), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    answer.readline()
    return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_every_process_lets_streams_end(
    gateway: Callable[..., Gateway], number: signal.Signals
) -> None:
    """As systemd stops a service: the supervisor decides, whoever else was told."""
    own = gateway(SLOW, workers=2)
    key = own.key()
    streams = [stream(own, key) for _ in range(6)]
    processes = [psutil.Process(own.process.pid), *own.tree()]
    for process in processes:
        process.send_signal(number)
    for answer in streams:
        with answer:
            text = answer.read().decode()
        assert "w59" in text, text[-500:]
        assert text.endswith("data: [DONE]\n\n"), text[-500:]
    if number is signal.SIGHUP:
        own.stop()
    assert own.process.wait(40) == 0
    assert not [process for process in processes if process.is_running()]
    records = own.command("usage", "--records", "100")["records"]
    assert [record["outcome"] for record in records] == ["ok"] * 6
    assert own.audit()["ok"]

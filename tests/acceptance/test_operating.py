"""What operators and init systems do to a gateway that serves: no request and no charge is lost by it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import psutil
import pytest

from tests.deployment import ECHO, SLOW, Gateway, run

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


def test_who_is_told_twice_hurries_and_still_says_and_settles_what_was(gateway: Callable[..., Gateway]) -> None:
    own = gateway(SLOW.replace("20", "200"))
    key = own.key()
    streams = [stream(own, key) for _ in range(3)]
    own.process.send_signal(signal.SIGTERM)
    own.until(lambda: own.status()["phase"] == "stopping")
    own.process.send_signal(signal.SIGTERM)
    for answer in streams:
        with answer:
            assert '"code":"overloaded"' in answer.read().decode()
    assert own.process.wait(40) == 0
    records = own.command("usage", "--records", "100")["records"]
    assert [record["outcome"] for record in records] == ["gateway_stop"] * 3
    assert own.audit()["ok"]


@pytest.mark.parametrize("output", ["closed", "full", "unread"])
def test_it_serves_whatever_becomes_of_its_output(gateway: Callable[..., Gateway], output: str) -> None:
    own = gateway(ECHO, wait=False)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    full_fd = os.open("/dev/full", os.O_WRONLY)

    def lose() -> None:
        for number in (1, 2):
            if output == "closed":
                os.close(number)
            else:
                os.dup2(write_fd if output == "unread" else full_fd, number)

    own.start(limits=lose)
    os.close(write_fd)
    os.close(full_fd)
    own.until(lambda: all(child["state"] == "ready" for child in own.status()["children"]))
    assert own.command("reload")["generation"] == 2  # the supervisor still says how it goes
    assert own.ask(own.key())[0] == 200
    assert own.stop() == 0


def test_its_folders_are_found_by_whatever_way_and_kept(gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    own = gateway(ECHO)
    (tmp_path / "link").symlink_to(own.folder)
    assert run(tmp_path, "keys", "list", "--config", str(tmp_path / "link" / "headgate.toml"))
    elsewhere = run(own.folder, "keys", "list", "--config", str(own.config), code=1, TMPDIR=str(tmp_path))
    assert f"process {own.process.pid} serves" in elsewhere
    assert f"another TMPDIR than {tmp_path}" in elsewhere
    # systemd-tmpfiles takes this lock before it removes what is old from a folder
    folder = os.open(own.layout.run_dir, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert own.stop() == 0
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)

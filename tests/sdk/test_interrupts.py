"""Ctrl-C while a call waits: the call ends then, not when a clock runs out, and the client goes on."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from headgate._transport import interrupts
from headgate._transport.interrupts import interruptibly

from tests.deployment import wait_for

COMPLETION = json.dumps(
    {"id": "x", "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hey"}}]}
).encode()

BEGINNING = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    b'data: {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": "he"}}]}\n\n'
)

PROGRAM = """
import sys
from headgate import Headgate

client = Headgate(api_key="hg_x", base_url=sys.argv[1], transport=sys.argv[2])
ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
try:
    answer = client.chat.completions.create(**ask, stream=sys.argv[3] != "whole")
    for piece in answer.text:
        print(piece, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(client.chat.completions.create(**ask).text)
"""


def test_a_descriptor_that_an_interrupt_left_behind_is_our_own() -> None:
    def abort() -> None:
        raise AssertionError("nobody interrupts")

    interruptibly(lambda: None, abort)
    watch = interrupts._watch
    assert watch is not None
    signal.set_wakeup_fd(watch.descriptor)
    try:
        assert interruptibly(lambda: watch.abort, abort) is abort
    finally:
        left = signal.set_wakeup_fd(-1)
    assert left == -1


@pytest.mark.parametrize("what", ["whole", "stream", "silence"])
@pytest.mark.parametrize("transport", ["httpx", "fast"])
def test_an_interrupt_ends_the_wait(transport: str, what: str) -> None:
    if transport == "fast" and importlib.util.find_spec("pyreqwest") is None:
        pytest.skip("pyreqwest is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-c", PROGRAM, address, transport, what]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            silent, _ = server.accept()
            with silent:
                assert silent.recv(65_536).startswith(b"POST"), "it has asked, and waits"
                if what == "silence":
                    silent.sendall(BEGINNING)
                    assert program.stdout is not None
                    assert program.stdout.readline() == "he\n"
                # A signal that comes right before a system call is heard after it, in every program in Python.
                wait_for(lambda: psutil.Process(program.pid).status() == "sleeping", "its wait")
                program.send_signal(signal.SIGINT)
                # The clocks of the first byte and of silence, 120 s and 60 s, have far to go.
                answering, _ = server.accept()
            with answering:
                assert answering.recv(65_536).startswith(b"POST")
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                answering.sendall(head % len(COMPLETION) + COMPLETION)
            said, _ = program.communicate(timeout=30)
    assert said.splitlines() == ["interrupted", "hey"]

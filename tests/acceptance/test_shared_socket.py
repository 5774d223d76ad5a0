"""Workers share one socket: each has its part of the connections, and one that hangs keeps nobody waiting."""

from __future__ import annotations

import contextlib
import http.client
import resource
import signal
import socket
from typing import Any

import psutil

from tests.deployment import ECHO, wait_for

CONNECTIONS = 40
PATIENCE_S = 10.0
FEW, MORE = 64, 256
"""Descriptors that a process may have, and how far it may raise that itself."""


def ask(deployment: Any) -> http.client.HTTPConnection:
    """A connection that has been answered once and stays open."""
    connection = http.client.HTTPConnection("127.0.0.1", deployment.port, timeout=PATIENCE_S)
    connection.request("GET", "/health/live")
    answer = connection.getresponse()
    assert answer.status == 200
    answer.read()
    return connection


def held(deployment: Any) -> list[int]:
    """How many connections each worker holds, as the system has it."""
    return [
        sum(one.status == psutil.CONN_ESTABLISHED for one in worker.net_connections("tcp4"))
        for worker in deployment.children("headgate_gateway.worker")
    ]


def serving(deployment: Any) -> bool:
    workers = deployment.children("headgate_gateway.worker")
    table = memoryview((deployment.layout.connections).read_bytes()).cast("q")
    return len(workers) == 2 and {table[0], table[2]} == {worker.pid for worker in workers}


def test_each_worker_has_its_part(gateway: Any) -> None:
    deployment = gateway(ECHO, workers=2)
    wait_for(lambda: serving(deployment), "two workers")
    open_ones = [ask(deployment) for _ in range(CONNECTIONS)]
    wait_for(lambda: sum(held(deployment)) == CONNECTIONS, "all connections")
    assert min(held(deployment)) >= CONNECTIONS // 2 - 4, held(deployment)
    for connection in open_ones:
        connection.close()
    wait_for(lambda: sum(held(deployment)) == 0, "the end of all")


def test_a_worker_that_hangs_keeps_nobody_waiting(gateway: Any) -> None:
    deployment = gateway(ECHO, workers=2)
    wait_for(lambda: serving(deployment), "two workers")
    hanging = deployment.children("headgate_gateway.worker")[0]
    hanging.send_signal(signal.SIGSTOP)
    try:
        open_ones = [ask(deployment) for _ in range(CONNECTIONS // 2)]
    finally:
        hanging.send_signal(signal.SIGCONT)
    for connection in open_ones:
        connection.close()
    assert deployment.stop() == 0


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, MORE))


def test_it_takes_as_many_connections_as_the_system_lets_it_and_survives_more(gateway: Any) -> None:
    deployment = gateway(ECHO, wait=False)
    deployment.start(limits=few_descriptors)
    (worker,) = deployment.children("headgate_gateway.worker")
    with contextlib.ExitStack() as crowd:

        def come(count: int) -> None:
            for _ in range(count):
                crowd.enter_context(socket.create_connection(("127.0.0.1", deployment.port)))

        come(2 * FEW)
        ask(deployment).close()
        come(MORE)
        wait_for(lambda: worker.num_fds() == MORE, "the last descriptor")
    ask(deployment).close()
    assert deployment.children("headgate_gateway.worker") == [worker]

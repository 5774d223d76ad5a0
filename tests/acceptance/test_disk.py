"""A disk that is full, that fails a write or a sync: no wrong state, 503 meanwhile, no manual step afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.deployment import ECHO, wait_for

SLOW = """
[[models]]
id = "slow"
task = "chat"
backend = "echo"
options = { delay_ms = 20 }
price = { input = "1", output = "1" }
"""
PATIENCE_S = 60.0
DISK = "96m"
"""Room for the reserve of 64 MiB, flight files, the store, and not much more."""


class Client:
    """Asks, and remembers what was answered in full."""

    def __init__(self, deployment: Any, key: str) -> None:
        self.url = f"{deployment.url}/v1/chat/completions"
        self.http = httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=30)
        self.received: list[str] = []

    def ask(self, words: int = 5, model: str = "echo", *, stream: bool = False) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": "word " * words}], "stream": stream}
        return self.http.stream("POST", self.url, json=body) if stream else self.http.post(self.url, json=body)

    async def status(self, *, codes: Sequence[str] = ("ledger_unavailable",)) -> int:
        """Ask once; whatever is refused is refused as the table of errors says."""
        answer = await self.ask()
        if answer.status_code == 200:
            self.received.append(answer.headers["x-request-id"])
        else:
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] in codes, answer.text
            assert float(answer.headers["retry-after"]) > 0
        status: int = answer.status_code
        return status

    async def until(self, status: int) -> None:
        # What waited while the ledger came back may be too late by then, where the machine is slow.
        codes = ("ledger_unavailable", "overloaded") if status == 200 else ("ledger_unavailable",)
        async with asyncio.timeout(PATIENCE_S):
            while await self.status(codes=codes) != status:
                await asyncio.sleep(0.01)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a small disk of memory at a folder; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str = DISK) -> Path:
        folder.mkdir(parents=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no right to mount: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets have short paths, which pytest's own does not always give."""
    with tempfile.TemporaryDirectory(prefix="hg-") as folder:
        yield Path(folder)


def fill(folder: Path) -> Path:
    """Use up every byte that is left; once more, what somebody gave back meanwhile."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return filler


@contextlib.contextmanager
def others_take_all(filler: Path) -> Iterator[None]:
    """Whatever room is given back is taken at once."""
    over = threading.Event()

    def take() -> None:
        with filler.open("ab", buffering=0) as file:
            while not over.wait(0.005):
                with contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        continue

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    try:
        yield
    finally:
        over.set()
        taker.join()


def charged_once(deployment: Any, client: Client) -> None:
    report = deployment.audit()
    assert report["ok"], report
    records = [row["request_id"] for row in deployment.command("usage", "--records", "1000")["records"]]
    assert len(records) == len(set(records))
    assert set(client.received) <= set(records)


async def test_a_full_disk_refuses_what_is_new_ends_what_is_open_and_mends(gateway: Any, small_disk: Any) -> None:
    deployment = gateway(ECHO + SLOW, wait=False)
    small_disk(deployment.folder / "data")
    deployment.start()
    client = Client(deployment, deployment.key(budget="100/total"))
    async with client.http:
        await client.until(200)
        async with client.ask(60, "slow", stream=True) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            filler = fill(deployment.folder / "data")
            await client.until(503)
            assert await client.status() == 503
            await asyncio.to_thread(wait_for, lambda: not deployment.is_ready(), "unreadiness")
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest, rest[-3:]
        client.received.append(stream.headers["x-request-id"])
        assert await client.status() == 503
        filler.unlink()
        await client.until(200)
        await asyncio.to_thread(wait_for, deployment.is_ready, "readiness")
        charged_once(deployment, client)
    assert deployment.stop() == 0


async def test_a_worker_that_dies_on_a_full_disk_comes_back_in_its_room(gateway: Any, small_disk: Any) -> None:
    deployment = gateway(ECHO + SLOW, wait=False)
    small_disk(deployment.folder / "data")
    deployment.start()
    client = Client(deployment, deployment.key(budget="100/total"))
    folder = deployment.folder / "data"
    async with client.http:
        await client.until(200)
        filler = fill(folder)
        await client.until(503)
        with others_take_all(filler):
            for _ in range(2):
                (worker,) = deployment.children("headgate_gateway.worker")
                worker.kill()
                await asyncio.to_thread(psutil.wait_procs, [worker])
                assert await client.status() == 503
                answer = await client.http.get(f"{deployment.url}/v1/models")
                assert answer.status_code == 200
        filler.unlink()
        await client.until(200)
        charged_once(deployment, client)
    assert deployment.stop() == 0


async def test_a_full_temporary_folder_ends_no_worker(
    gateway: Any, short_path: Path, small_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_disk(short_path / "tmp", "8m")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    deployment = gateway(ECHO + SLOW, workers=2)
    deployment.until(deployment.is_settled)
    workers = deployment.children("headgate_gateway.worker")
    client = Client(deployment, deployment.key(budget="100/total"))
    filler = fill(folder)
    async with client.http:
        for model in ("echo", "slow", "none"):  # what was never counted before
            answers = await asyncio.gather(*(client.ask(model=model) for _ in range(16)))
            assert {answer.status_code for answer in answers} == {404 if model == "none" else 200}
        admin = {"authorization": f"Bearer {deployment.admin_key}"}
        async with asyncio.timeout(PATIENCE_S):
            while (
                'code="model_not_found",model="other"} 16.0'
                not in (await client.http.get(f"{deployment.url}/metrics", headers=admin)).text
            ):
                await asyncio.sleep(0.05)
        assert deployment.children("headgate_gateway.worker") == workers
        fill(folder)  # a status that was being written has let go of the one before
        deployment.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(deployment.until, lambda: "the reload changed nothing" in deployment.err)
        assert (await client.ask()).status_code == 200
        filler.unlink()
        await asyncio.to_thread(
            wait_for, lambda: json.loads(deployment.layout.status.read_bytes())["reloads"] == 1, "a true status"
        )
        deployment.command("reload")
        assert (await client.ask()).status_code == 200


async def test_a_write_that_fails_halfway_restarts_the_ledger_and_loses_nothing(gateway: Any) -> None:
    deployment = gateway(ECHO)
    client = Client(deployment, deployment.key(budget="100/total"))
    async with client.http:
        await client.until(200)
        (ledger,) = deployment.children("headgate_gateway.ledger")
        wal = deployment.folder / "data" / "headgate.sqlite-wal"
        most = wal.stat().st_size + 6_000  # the next page that is appended is torn
        resource.prlimit(ledger.pid, resource.RLIMIT_FSIZE, (most, most))
        for _ in range(50):
            await client.status()
        assert not psutil.pid_exists(ledger.pid)
        await client.until(200)
        charged_once(deployment, client)
    assert deployment.stop() == 0


FAULTS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Fails syncs, or writes, of the store with the errno that the file $FAULT_ORDER names: "sync 5", "write 30". */

static int order(const char *what, int fd) {
    char link[64], path[4096], word[16];
    int number = 0;
    FILE *file;
    ssize_t length;
    const char *orders = getenv("FAULT_ORDER");
    if (!orders || access(orders, F_OK)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, ".sqlite")) return 0;
    if (!(file = fopen(orders, "r"))) return 0;
    if (fscanf(file, "%15s %d", word, &number) != 2 || strcmp(word, what)) number = 0;
    fclose(file);
    return number;
}

#define FAILING(what, name, fd, params, args, type)                     \\
    type name params {                                                  \\
        static type(*real) params;                                      \\
        int number = order(what, fd);                                   \\
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);           \\
        if (number) { errno = number; return -1; }                      \\
        return real args;                                               \\
    }

FAILING("sync", fsync, fd, (int fd), (fd), int)
FAILING("sync", fdatasync, fd, (int fd), (fd), int)
FAILING("write", pwrite64, fd, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), ssize_t)
FAILING("write", pwrite, fd, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), ssize_t)
"""


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Preloads failing system calls into what is started from now on; returns the file of the order."""
    source, library, orders = tmp_path / "faults.c", tmp_path / "faults.so", tmp_path / "order"
    source.write_text(FAULTS)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler for the faults: {error}")
    if sys.platform != "linux":
        pytest.skip("preloading is done for Linux only")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAULT_ORDER", str(orders))
    return orders


@pytest.mark.parametrize("order", ["sync 5", "write 28", "write 30"], ids=["sync", "full", "read-only"])
async def test_a_disk_that_fails_for_a_while(gateway: Any, faults: Path, order: str) -> None:
    deployment = gateway(ECHO)
    client = Client(deployment, deployment.key(budget="100/total"))
    async with client.http:
        await client.until(200)
        faults.write_text(order)
        await client.until(503)
        faults.unlink()
        await client.until(200)
        charged_once(deployment, client)
    assert deployment.stop() == 0

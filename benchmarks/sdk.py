"""The client beside `openai` and bare httpx, against the same mock server, in one run.

`python -m benchmarks.sdk [--json] [--calls N] [--memory N]`. The mock is a process on a core of its own that
answers from memory, so what is measured is the clients. Figures are medians of rounds with their spread; rounds
of the contestants take turns, so that a noisy neighbour meets all of them. Processor time per call says what a
client costs, where the clock on the wall says also who else was there.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

ANSWER = json.dumps(
    {
        "id": "req_00000000000000000000000000000001",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21, "cost": "0.00003"},
    }
).encode()
MESSAGES: list[Any] = [{"role": "user", "content": "Say something about a fox and a dog, please."}]
IN_FLIGHT = 32

SERVER = r"""
import asyncio, sys
ANSWER = bytes.fromhex(sys.argv[1])
REPLY = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\n"
         b"headgate-version: bench\r\n"
         b"headgate-cost: 0.00003\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)) + ANSWER
class Mock(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.rest = transport, b""
    def data_received(self, data):
        self.rest += data
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            head = self.rest[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15:].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.rest) < end + 4 + size:
                return
            self.rest = self.rest[end + 4 + size:]
            self.transport.write(REPLY)
async def main():
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
try:
    import uvloop
    uvloop.run(main())
except ImportError:
    asyncio.run(main())
"""


def start_mock() -> tuple[subprocess.Popen[str], str]:
    """The mock server's process and its address."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, ANSWER.hex()], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


def apart(mock: subprocess.Popen[str]) -> list[int] | None:
    """Give the client one core and the mock another, so that neither is measured with the other's time.

    The client gets one core and not what is left, because a transport with threads of its own would use more than
    the others do. None where a process has one core only or cannot choose.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return None
    os.sched_setaffinity(mock.pid, {cores[-1]})
    os.sched_setaffinity(0, {cores[0]})
    return [cores[0], cores[-1]]


def import_ms(statement: str, rounds: int = 7) -> float:
    """Milliseconds of a fresh interpreter that runs a statement, over one that runs nothing; medians."""

    def run(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    bare, full = [], []
    for _ in range(rounds):
        bare.append(run("pass"))
        full.append(run(statement))
    return (statistics.median(full) - statistics.median(bare)) * 1000


def sync_contestants(url: str) -> dict[str, tuple[Callable[[], Any], Callable[[], None]]]:
    """A call and a close for each client."""
    import httpx
    import openai
    from headgate import Headgate

    bare = httpx.Client()
    target = f"{url}/v1/chat/completions"
    document = {"model": "echo", "messages": MESSAGES}
    credentials = {"authorization": "Bearer hg_bench"}
    stock = openai.OpenAI(api_key="hg_bench", base_url=f"{url}/v1")
    ours = Headgate(api_key="hg_bench", base_url=url, transport="httpx")
    fast = Headgate(api_key="hg_bench", base_url=url, transport="fast")
    return {
        "bare httpx": (lambda: bare.post(target, json=document, headers=credentials).json(), bare.close),
        "openai": (lambda: stock.chat.completions.create(model="echo", messages=MESSAGES), stock.close),
        "headgate, httpx": (
            lambda: ours.chat.completions.create(model="echo", messages=MESSAGES),
            ours.close,
        ),
        "headgate, fast": (
            lambda: fast.chat.completions.create(model="echo", messages=MESSAGES),
            fast.close,
        ),
    }


@dataclass(frozen=True)
class Measured:
    """What a contestant's rounds gave.

    Attributes:
        rounds: The figure of each round.
        cpu_us: Processor time of the client's process per call, all its threads together; of each round.
    """

    rounds: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    @property
    def middle(self) -> float:
        """The median round."""
        return statistics.median(self.rounds)


def measure_sync(url: str, calls: int, rounds: int = 7) -> dict[str, Measured]:
    """Microseconds per call, one after the other."""
    contestants = sync_contestants(url)
    measured = {name: Measured() for name in contestants}
    for call, _ in contestants.values():
        for _ in range(50):
            call()
    for _ in range(rounds):
        for name, (call, _) in contestants.items():
            gc.collect()
            began, used = time.perf_counter(), time.process_time()
            for _ in range(calls):
                call()
            measured[name].rounds.append((time.perf_counter() - began) / calls * 1e6)
            measured[name].cpu_us.append((time.process_time() - used) / calls * 1e6)
    for _, close in contestants.values():
        close()
    return measured


AsyncContestant = tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]], int]


def async_contestants(url: str, calls: int) -> dict[str, AsyncContestant]:
    """A call, a close and a number of calls for each client."""
    import httpx
    import openai
    from headgate import AsyncHeadgate

    target = f"{url}/v1/chat/completions"
    document = {"model": "echo", "messages": MESSAGES}
    credentials = {"authorization": "Bearer hg_bench"}
    bare = httpx.AsyncClient()
    stock = openai.AsyncOpenAI(api_key="hg_bench", base_url=f"{url}/v1")
    ours = AsyncHeadgate(api_key="hg_bench", base_url=url, transport="httpx")
    fast = AsyncHeadgate(api_key="hg_bench", base_url=url, transport="fast")

    async def bare_call() -> Any:
        return (await bare.post(target, json=document, headers=credentials)).json()

    few = max(IN_FLIGHT, calls // 10)
    return {
        "bare httpx": (bare_call, bare.aclose, few),
        "openai": (lambda: stock.chat.completions.create(model="echo", messages=MESSAGES), stock.close, few),
        "headgate, httpx": (
            lambda: ours.chat.completions.create(model="echo", messages=MESSAGES),
            ours.close,
            few,
        ),
        "headgate, fast": (
            lambda: fast.chat.completions.create(model="echo", messages=MESSAGES),
            fast.close,
            calls,
        ),
    }


async def measure_async(url: str, calls: int, rounds: int = 7) -> dict[str, Measured]:
    """Requests per second with 32 in flight."""

    async def run(call: Callable[[], Awaitable[Any]], count: int) -> float:
        left = iter(range(count))

        async def worker() -> None:
            for _ in left:
                await call()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        return count / (time.perf_counter() - began)

    contestants = async_contestants(url, calls)
    measured = {name: Measured() for name in contestants}
    for call, _, _ in contestants.values():
        await run(call, 100)
    for _ in range(rounds):
        for name, (call, _, count) in contestants.items():
            gc.collect()
            used = time.process_time()
            measured[name].rounds.append(await run(call, count))
            measured[name].cpu_us.append((time.process_time() - used) / count * 1e6)
    for _, close, _ in contestants.values():
        await close()
    return measured


def measure_memory(url: str, calls: int) -> dict[str, float]:
    """Resident memory in MiB after the first tenth of the calls and after all of them."""
    import psutil
    from headgate import Headgate

    process = psutil.Process(os.getpid())
    with Headgate(api_key="hg_bench", base_url=url, transport="auto") as client:
        marks: list[float] = []
        for count in (calls // 10, calls - calls // 10):
            for _ in range(count):
                client.chat.completions.create(model="echo", messages=MESSAGES)
            gc.collect()
            marks.append(process.memory_info().rss / 2**20)
        files = process.num_fds()
    return {"calls": calls, "early_mib": marks[0], "late_mib": marks[1], "open_files": files}


def table(measured: dict[str, Measured]) -> dict[str, dict[str, float]]:
    """Medians, spread and processor time of each contestant."""
    return {
        name: {
            "median": one.middle,
            "least": min(one.rounds),
            "most": max(one.rounds),
            "cpu_us_per_call": statistics.median(one.cpu_us),
        }
        for name, one in measured.items()
    }


def show(figures: dict[str, Any]) -> None:
    """Print figures for people."""
    for name, rows in figures.items():
        if not isinstance(rows, dict):
            print(f"{name}: {rows}")
            continue
        print(f"\n{name}")
        for row, value in rows.items():
            values = value.items() if isinstance(value, dict) else [("", value)]
            print(f"  {row:<24}" + "".join(f"{number:12.2f} {word:<16}" for word, number in values))
    print("\naims: import 100 ms, client 150 ms; ratios 1.3, 0.6, -, 10, -")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--calls", type=int, default=1000, help="calls of a sync round; async ones have more")
    parser.add_argument("--memory", type=int, default=100_000, help="calls of the memory run; 0 leaves it out")
    options = parser.parse_args()
    ours = "import headgate; headgate.Headgate(api_key='x', transport={!r})"
    imports = {
        "import headgate": import_ms("import headgate"),
        "client, fast": import_ms(ours.format("fast")),
        "its first resource": import_ms(ours.format("fast") + ".chat.completions"),
        "client, httpx": import_ms(ours.format("httpx")),
        "import openai": import_ms("import openai"),
        "first OpenAI client": import_ms("import openai; openai.OpenAI(api_key='x').chat.completions"),
    }
    mock, url = start_mock()
    pinned = apart(mock)
    try:
        sync = measure_sync(url, options.calls)
        concurrent = asyncio.run(measure_async(url, options.calls * 5))
        memory = measure_memory(url, options.memory) if options.memory else None
    finally:
        mock.kill()
        mock.wait()
    stock, fast = concurrent["openai"], concurrent["headgate, fast"]
    figures = {
        "cores": os.cpu_count(),
        "client_and_mock_on_cores": pinned,
        "python": sys.version.split()[0],
        "import_ms": imports,
        "sync_us_per_call": table(sync),
        "async_requests_per_s": table(concurrent),
        "memory": memory,
        "ratios": {
            "sync_to_bare_httpx": sync["headgate, httpx"].middle / sync["bare httpx"].middle,
            "sync_to_openai": sync["headgate, httpx"].middle / sync["openai"].middle,
            "fast_sync_to_openai": sync["headgate, fast"].middle / sync["openai"].middle,
            "fast_async_to_openai": fast.middle / stock.middle,
            "fast_async_to_openai_at_worst": min(fast.rounds) / max(stock.rounds),
        },
    }
    if options.json:
        print(json.dumps(figures))
    else:
        show(figures)


if __name__ == "__main__":
    main()

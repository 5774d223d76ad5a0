"""The client beside `openai` and bare httpx, against the same mock server, in one run.

`python -m benchmarks.sdk [--json] [--calls N] [--memory N]`. The mock is a process of its own that answers from
memory, so what is measured is the clients. Every figure is the best of the rounds; rounds of the contestants take
turns, so that a noisy neighbour meets all of them.
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


def measure_sync(url: str, calls: int, rounds: int = 5) -> dict[str, float]:
    """Microseconds per call, one after the other."""
    best: dict[str, float] = {}
    contestants = sync_contestants(url)
    for name, (call, _) in contestants.items():
        for _ in range(50):
            call()
        best[name] = float("inf")
    for _ in range(rounds):
        for name, (call, _) in contestants.items():
            gc.collect()
            began = time.perf_counter()
            for _ in range(calls):
                call()
            best[name] = min(best[name], (time.perf_counter() - began) / calls * 1e6)
    for _, close in contestants.values():
        close()
    return best


async def measure_async(url: str, calls: int, rounds: int = 3) -> dict[str, float]:
    """Requests per second with 32 in flight."""
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

    contestants: dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]], int]] = {
        "bare httpx": (bare_call, bare.aclose, calls // 5),
        "openai": (
            lambda: stock.chat.completions.create(model="echo", messages=MESSAGES),
            stock.close,
            calls // 5,
        ),
        "headgate, httpx": (
            lambda: ours.chat.completions.create(model="echo", messages=MESSAGES),
            ours.close,
            calls // 5,
        ),
        "headgate, fast": (
            lambda: fast.chat.completions.create(model="echo", messages=MESSAGES),
            fast.close,
            calls,
        ),
    }

    async def run(call: Callable[[], Awaitable[Any]], count: int) -> float:
        left = iter(range(count))

        async def worker() -> None:
            for _ in left:
                await call()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        return count / (time.perf_counter() - began)

    best = dict.fromkeys(contestants, 0.0)
    for call, _, _ in contestants.values():
        await run(call, 100)
    for _ in range(rounds):
        for name, (call, _, count) in contestants.items():
            gc.collect()
            best[name] = max(best[name], await run(call, count))
    for _, close, _ in contestants.values():
        await close()
    return best


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


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--memory", type=int, default=100_000, help="calls of the memory run; 0 leaves it out")
    options = parser.parse_args()
    imports = {
        "import headgate": import_ms("import headgate"),
        "first Headgate client": import_ms("import headgate; headgate.Headgate(api_key='x')"),
        "import openai": import_ms("import openai"),
        "first OpenAI client": import_ms("import openai; openai.OpenAI(api_key='x')"),
    }
    mock, url = start_mock()
    try:
        sync = measure_sync(url, options.calls)
        concurrent = asyncio.run(measure_async(url, options.calls * 10))
        memory = measure_memory(url, options.memory) if options.memory else None
    finally:
        mock.kill()
        mock.wait()
    figures = {
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "import_ms": imports,
        "sync_us_per_call": sync,
        "async_requests_per_s": concurrent,
        "memory": memory,
        "ratios": {
            "sync_to_bare_httpx": sync["headgate, httpx"] / sync["bare httpx"],
            "sync_to_openai": sync["headgate, httpx"] / sync["openai"],
            "fast_sync_to_openai": sync["headgate, fast"] / sync["openai"],
            "fast_async_to_openai": concurrent["headgate, fast"] / concurrent["openai"],
        },
    }
    if not options.json:
        for name, table in figures.items():
            if isinstance(table, dict):
                print(f"\n{name}")
                for row, value in table.items():
                    print(f"  {row:<24}{value:12.2f}")
        print()
    print(json.dumps(figures) if options.json else "aims: import 100 ms, 1.3, 0.6, -, 10")


if __name__ == "__main__":
    main()

"""Other gateways, from their own installs, with nothing but passing on switched on."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.gateways.load import REQUEST
from benchmarks.gateways.machine import pin
from benchmarks.ports import free_port

PATIENCE_S = 60.0
_MASTER_KEY = f"sk-{secrets.token_hex(32)}"
_LITELLM = """
model_list:
  - model_name: gpt-4o-mini
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: sk-benchmark
"""


class Other:
    """A gateway that serves: where, with which headers, and its process ids."""

    def __init__(self, url: str, headers: Mapping[str, str], pids: tuple[int, ...]) -> None:
        self.url = url
        self.headers = headers
        self.pids = pids


@contextmanager
def litellm(environment: Path, folder: Path, upstream: int, core: int) -> Iterator[Other]:
    """The LiteLLM proxy of a virtual environment: one worker, no database, the master key that it insists on."""
    config = folder / "litellm.yaml"
    config.write_text(_LITELLM.format(upstream=upstream))
    port = free_port()
    program = str(environment / "bin" / "litellm")
    argv = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with _served(argv, folder, port, {"authorization": f"Bearer {_MASTER_KEY}"}, core) as other:
        yield other


@contextmanager
def portkey(install: Path, folder: Path, upstream: int, core: int) -> Iterator[Other]:
    """The Portkey gateway of a folder in which `npm install @portkey-ai/gateway` was run."""
    port = free_port()
    script = install / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    headers = {
        "authorization": "Bearer sk-benchmark",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
    }
    with _served(["node", str(script), f"--port={port}", "--headless"], folder, port, headers, core) as other:
        yield other


@contextmanager
def _served(argv: list[str], folder: Path, port: int, headers: Mapping[str, str], core: int) -> Iterator[Other]:
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "LITELLM_MASTER_KEY": _MASTER_KEY,
        "NODE_ENV": "production",
        "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost",
    }
    with (folder / "other.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        _wait_until_answering(f"{url}/v1/chat/completions", headers, process, folder / "other.log")
        pids = (process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True)))
        for pid in pids:
            pin(pid, core)
        yield Other(url, headers, pids)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_answering(
    url: str, headers: Mapping[str, str], process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline, last = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < deadline and process.poll() is None:
        request = urllib.request.Request(
            url, REQUEST.encode(), {"content-type": "application/json", **headers}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                if "choices" in json.load(answer):
                    return
        except (urllib.error.URLError, OSError) as error:
            last = str(error)
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer ({last}): {log.read_text(errors='replace')[-1000:]}")

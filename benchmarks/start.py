"""How long people wait before anything happens.

`python -m benchmarks.start [--json] [--runs 5]`

Times `headgate --help`, with every plugin installed, and `headgate serve` to the first 200 of `/health/ready`
with an echo model and a remote one. Each figure is the median of its runs; aims are 0.5 s and 2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

HEADGATE = (sys.executable, "-m", "headgate_gateway.cli")
CONFIG = """
[server]
port = 0

[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = { input = "0.15", output = "0.60" }

[[models]]
id = "far"
task = "chat"
[[models.targets]]
backend = "openai"
model = "far"
base_url = "http://127.0.0.1:9/v1"
"""
POLL_S = 0.005
PATIENCE_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    figures = {
        "help_s": [help_once() for _ in range(given.runs)],
        "ready_s": [ready_once() for _ in range(given.runs)],
    }
    medians = {name: round(statistics.median(times), 3) for name, times in figures.items()}
    print(f"headgate --help                 {medians['help_s']:6.3f} s   (aim 0.5 s)")
    print(f"headgate serve to /health/ready {medians['ready_s']:6.3f} s   (aim 2 s)")
    if given.json:
        print(json.dumps({"benchmark": "start", "runs": given.runs, "cores": os.cpu_count(), **medians}))


def help_once() -> float:
    begin = time.perf_counter()
    subprocess.run([*HEADGATE, "--help"], check=True, capture_output=True)
    return time.perf_counter() - begin


def ready_once() -> float:
    """Start, ask until ready, stop."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "headgate.toml"
        config.write_text(CONFIG)
        log = Path(folder) / "log"
        with log.open("wb") as errors:
            begin = time.perf_counter()
            process = subprocess.Popen(
                [*HEADGATE, "serve", "--config", str(config)], stdout=subprocess.DEVNULL, stderr=errors
            )
            try:
                return until_ready(process, log) - begin
            finally:
                process.terminate()
                process.wait()


def until_ready(process: subprocess.Popen[bytes], log: Path) -> float:
    """The moment of the first 200; the address stands in the supervisor's log line."""
    address = None
    deadline = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < deadline and process.poll() is None:
        if address is None and (found := re.search(r'"address": "([^"]+)"', log.read_text())):
            address = found[1]
        if address is not None:
            try:
                with urlopen(f"{address}/health/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return time.perf_counter()
            except URLError:
                pass
        time.sleep(POLL_S)
    raise SystemExit(f"it never became ready:\n{log.read_text()}")


if __name__ == "__main__":
    main()

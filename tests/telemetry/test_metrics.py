from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from headgate_gateway.telemetry.metrics import FILE_BYTES, MAX_LABEL, OTHER, Metrics
from headgate_plugin_api import Usage


def lines(metrics: Metrics) -> dict[str, float]:
    text = metrics.render().decode()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
    }


def test_counts_what_happened() -> None:
    metrics = Metrics(["small"])
    metrics.began()
    metrics.ended("small", "ok", 0.2)
    metrics.consumed("small", Usage(input=7), 1_500, 0.001)
    found = lines(metrics)
    assert found['headgate_requests_total{code="ok",model="small"}'] == 1
    assert found['headgate_usage_total{dimension="input",model="small"}'] == 7
    assert found['headgate_cost_nano_total{model="small"}'] == 1500
    assert found["headgate_requests_in_flight"] == 0


def test_labels_are_bounded() -> None:
    metrics = Metrics(["small"])
    for number in range(1000):
        metrics.ended(f"guess-{number}", f"code-{number}", 0.1)
    found = [name for name in lines(metrics) if name.startswith("headgate_requests_total")]
    assert len(found) == MAX_LABEL + 1
    assert all(f'model="{OTHER}"' in name for name in found)


def test_workers_are_added_up(tmp_path: Path) -> None:
    worker = (
        "from headgate_gateway.telemetry.metrics import Metrics\n"
        "from pathlib import Path\n"
        f"m = Metrics(['small'], Path({str(tmp_path)!r}))\n"
        "m.ended('small', 'ok', 0.1)\nprint(m.render().decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for count in (1.0, 2.0):
        told = subprocess.run(
            [sys.executable, "-c", worker], env=environment, capture_output=True, text=True, check=True
        )
        assert f'headgate_requests_total{{code="ok",model="small"}} {count}' in told.stdout


def test_collected_counts_are_the_same_counts_a_little_later() -> None:
    planned: list[Any] = []
    collected = Metrics(["small"], later=lambda seconds, call: planned.append((seconds, call)))
    at_once = Metrics(["small"])
    for metrics in (collected, at_once):
        for seconds in (0.0005, 0.001, 0.002, 400.0):
            metrics.began()
            metrics.first_event("small", seconds)
            metrics.consumed("small", Usage(input=3, gpu_ms=2), 7, seconds)
            metrics.ended("small", "ok", seconds)
        metrics.began()
    assert collected.render() != at_once.render()
    ((_, flush),) = planned
    flush()
    assert _counted(collected) == _counted(at_once)
    collected.began()
    assert len(planned) == 2


def _counted(metrics: Metrics) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if "_created" not in line]


def test_files_have_no_holes_that_a_full_disk_could_not_fill(tmp_path: Path) -> None:
    worker = (
        "from headgate_gateway.telemetry.metrics import *\n"
        "pin_process()\n"
        "names = [f'model-{number}' for number in range(200)]\n"
        f"m = Metrics(names, Path({str(tmp_path)!r}))\n"
        "for name in names: m.ended(name, 'ok', 0.1)\n"
        "print(m.render().decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", worker], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.count('headgate_requests_total{code="ok",model="model-') == 200
    sizes = {path.name.rpartition("_")[0]: path.stat() for path in tmp_path.iterdir()}
    assert sizes.keys() == {"counter", "histogram", "gauge_livesum", "gauge_mostrecent"}
    assert sizes["histogram"].st_size > FILE_BYTES
    assert all(found.st_blocks * 512 >= found.st_size for found in sizes.values())

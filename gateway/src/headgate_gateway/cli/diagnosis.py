"""What `headgate doctor` looks at: each finding says what was found and, where it is wrong, the fix."""

from __future__ import annotations

import ctypes.util
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from headgate_gateway.config_checks import against_plugins
from headgate_gateway.plugins import installed
from headgate_gateway.settings import Settings
from headgate_gateway.supervisor.data_folder import serving_pid
from headgate_gateway.supervisor.status import read_status

SLOW_SYNC_MS: Final = 10.0
SYNC_SAMPLES: Final = 25
OLDEST_SQLITE: Final = (3, 37, 0)
"""STRICT tables came with it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Everything, in the order in which a start would meet it."""
    return [
        Finding("python", sys.version_info >= (3, 11), platform.python_version(), ""),
        *_store(settings),
        *_data_folder(settings),
        _port(settings),
        *_runtimes(),
        *_plugins(settings),
    ]


def _store(settings: Settings) -> Iterator[Finding]:
    if not settings.store.shared:
        yield _sqlite()
        return
    from headgate_gateway.cli.database_diagnosis import examine_database

    yield from examine_database(settings)


def _sqlite() -> Finding:
    ok = sqlite3.sqlite_version_info >= OLDEST_SQLITE
    return Finding(
        "sqlite", ok, sqlite3.sqlite_version, "" if ok else "use a Python linked to SQLite 3.37 or newer"
    )


def _data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.server.data_dir
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(nearest, os.W_OK):
        yield Finding("data folder", False, f"{nearest} cannot be written", "change server.data_dir or its owner")
        return
    pid = serving_pid(settings.layout)
    yield Finding("data folder", True, f"{folder}" + (f", served by process {pid}" if pid else ""))
    if settings.store.shared:
        return  # nothing that a request waits for is synced here
    sync_ms = _sync_ms(nearest)
    ok = sync_ms <= SLOW_SYNC_MS
    fix = "" if ok else "each commit waits this long: put server.data_dir on a faster disk"
    yield Finding("disk sync", ok, f"{sync_ms:.2f} ms (median of {SYNC_SAMPLES})", fix)


def _sync_ms(folder: Path) -> float:
    took: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(SYNC_SAMPLES):
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - start)
    return statistics.median(took) * 1000


def _port(settings: Settings) -> Finding:
    import asyncio

    from headgate_gateway.supervisor.listening import AddressInUse, bind

    place = f"{settings.server.host}:{settings.server.port}"
    if serving_pid(settings.layout):
        status = read_status(settings.layout.status)  # it may have been started with another --port
        return Finding("port", True, f"{status.address if status is not None else place} (served)")
    try:
        asyncio.run(bind(settings.server.host, settings.server.port)).close()
    except AddressInUse as error:
        return Finding("port", False, str(error), "change server.port, or stop what listens there")
    return Finding("port", True, f"{place} is free")


def _runtimes() -> Iterator[Finding]:
    wheels = {name: _version(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    there = [f"{name} {found}" for name, found in wheels.items() if found]
    both = all(wheels.values())
    fix = "pip uninstall onnxruntime (the two overwrite each other's files)" if both else ""
    yield Finding("onnxruntime", not both, ", ".join(there) or "not installed", fix)
    yield Finding("torch", True, _version("torch") or "not installed")
    driver = ctypes.util.find_library("cuda")
    yield Finding("cuda driver", True, driver or "none: models run on the CPU")
    if driver:
        cudnn = (
            ctypes.util.find_library("cudnn") or _version("nvidia-cudnn-cu12") or _version("nvidia-cudnn-cu13")
        )
        fix = "" if cudnn else 'pip install "headgate-onnx[cuda]"'
        yield Finding("cudnn", bool(cudnn), cudnn or "not found", fix)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _plugins(settings: Settings) -> Iterator[Finding]:
    told = ", ".join(f"{plugin.name} {plugin.version}" for plugin in installed())
    yield Finding("plugins", bool(told), told or "none", "" if told else "pip install headgate-echo")
    for problem in against_plugins(settings):
        yield Finding("config", False, f"{problem.path}: {problem.message}", "`headgate check` has the line")

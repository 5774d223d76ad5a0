"""Stands in for ledger, worker and engine: keeps to the contract of a child, and does what a `behave` file says.

The run folder's `behave-KIND` says `die` (end at once), `deaf` (ignore SIGTERM), `silent` (never announce),
`hang` (announce and say nothing any more) or `load for ever`.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Literal

from headgate_engine.ipc import Codec, Connection, listen
from headgate_engine.wire import State, ToEngine
from headgate_plugin_api import ModelInfo


def main() -> None:
    kind = sys.argv[1]
    parser = argparse.ArgumentParser()
    for name in ("--settings", "--spec", "--socket"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--listen-fd", type=int, nargs="+")
    for name in ("--parent-fd", "--ready-fd", "--worker"):
        parser.add_argument(name, type=int)
    arguments = parser.parse_args(sys.argv[2:])
    folder = (arguments.settings or arguments.spec).parent
    behave = _text(folder / f"behave-{kind}")
    print(f"{kind} says hello", file=sys.stderr, flush=True)
    if behave == "die":
        sys.exit(3)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if behave == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(arguments.parent_fd,), daemon=True).start()
    if kind == "ledger":
        lock = (Path(json.loads(arguments.settings.read_text())["server"]["data_dir"]) / "ledger.lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if arguments.ready_fd is not None and behave != "silent":
        os.write(arguments.ready_fd, b'{"ready": true}\n')
        if behave != "hang":
            os.close(arguments.ready_fd)
    if kind == "engine":
        asyncio.run(_engine(arguments.socket, "loading" if behave == "load for ever" else "ready"))
    else:
        while True:
            signal.pause()


async def _engine(socket: Path, state: Literal["loading", "ready"]) -> None:
    def greet(connection: Connection[ToEngine]) -> None:
        connection.send(State(state=state, fraction=1.0, info=ModelInfo(device="cpu", detail="a fake")))

    codec: Codec[ToEngine] = Codec(ToEngine)
    server = await listen(socket, lambda: Connection(codec, lambda *_: None, on_open=greet))
    await server.serve_forever()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _die_with(parent_fd: int) -> None:
    while os.read(parent_fd, 4096):
        pass
    os._exit(1)


main()

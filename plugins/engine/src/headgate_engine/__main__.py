"""`python -m headgate_engine --spec FILE --socket PATH --parent-fd N`: one replica of one local model.

Exit codes: 0 stopped as asked, 1 the parent died, 2 bad arguments, 3 the model could not be
loaded, 4 the model's loop broke.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from headgate_engine.host import Host
from headgate_engine.spec import EngineSpec, read_spec

EXIT_ORPHANED: Final = 1
LINGER_S: Final = 2.0


def main() -> int:
    """Run an engine; returns its exit code."""
    arguments = _arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return asyncio.run(_serve(arguments.given, arguments.socket, arguments.linger_s, arguments.parent_fd))


async def _serve(spec: EngineSpec, socket: Path, linger_s: float, parent_fd: int | None) -> int:
    host = Host(spec, linger_s=linger_s)
    loop = asyncio.get_running_loop()
    if parent_fd is None:
        loop.add_signal_handler(signal.SIGTERM, host.stop)
    else:
        # What stops a service may send SIGTERM to all of its processes: workers that drain need their engines.
        loop.add_signal_handler(signal.SIGTERM, lambda: None)
        stop = functools.partial(loop.call_soon_threadsafe, host.stop)
        threading.Thread(target=_follow, args=(parent_fd, stop), name="parent", daemon=True).start()
    return await host.serve(socket)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m headgate_engine", description="Serve one local model.")
    parser.add_argument("--spec", type=Path, required=True, help="what to load (JSON)")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--parent-fd", type=int, help="a pipe: a byte stops the process, its end ends it")
    parser.add_argument("--linger-s", type=float, default=LINGER_S, help="how long a failed load stays reachable")
    arguments = parser.parse_args()
    try:
        arguments.given = read_spec(arguments.spec)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _follow(parent_fd: int, stop: Callable[[], object]) -> None:
    """Stop when the parent says so (a byte), and end the process when the parent has died.

    A model in the middle of a pass cannot be asked then, so nobody is.
    """
    while os.read(parent_fd, 1):
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            stop()
    os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # A model's own threads, or a thread stuck in a pass, must not keep a process that has been told to stop.
    os._exit(code)

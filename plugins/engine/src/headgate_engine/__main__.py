"""`python -m headgate_engine --spec FILE --socket PATH --parent-fd N`: one replica of one local model.

Exit codes: 0 stopped as asked, 1 the parent died, 2 bad arguments, 3 the model could not be
loaded, 4 the model's loop broke.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
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
    if arguments.parent_fd is not None:
        watch = threading.Thread(target=_die_with, args=(arguments.parent_fd,), name="parent", daemon=True)
        watch.start()
    return asyncio.run(_serve(arguments.given, arguments.socket, arguments.linger_s))


async def _serve(spec: EngineSpec, socket: Path, linger_s: float) -> int:
    host = Host(spec, linger_s=linger_s)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, host.stop)
    return await host.serve(socket)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m headgate_engine", description="Serve one local model.")
    parser.add_argument("--spec", type=Path, required=True, help="what to load (JSON)")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--parent-fd", type=int, help="a pipe; when its other end closes, the process ends")
    parser.add_argument("--linger-s", type=float, default=LINGER_S, help="how long a failed load stays reachable")
    arguments = parser.parse_args()
    try:
        arguments.given = read_spec(arguments.spec)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _die_with(parent_fd: int) -> None:
    """End the process when the parent does. A model in the middle of a pass cannot be asked, so nobody is."""
    while os.read(parent_fd, 4096):
        pass
    os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # A model's own threads, or a thread stuck in a pass, must not keep a process that has been told to stop.
    os._exit(code)

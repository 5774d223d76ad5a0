"""For tests of plugins: an engine as a real process, started and ended by a `with` block.

May import spec. Imports nothing that the running engine does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from headgate_plugin_api import ModelSpec


class EngineProcess:
    """`python -m headgate_engine` for a spec, listening on a socket. Entering starts it, leaving ends it.

    Attributes:
        socket: Where it listens; may not exist yet.
        process: The process, once started.
    """

    def __init__(self, spec: ModelSpec, socket: Path, *, environment: dict[str, str] | None = None) -> None:
        """Args:
        spec: What to load; an `EngineSpec` where the queue's bounds matter.
        socket: A short path (Unix limits it to about 100 bytes).
        environment: Added to this process's environment.
        """
        self.socket = socket
        self.process: subprocess.Popen[bytes] | None = None
        self._spec = spec
        self._environment = os.environ | (environment or {})
        self._parent: int | None = None

    def start(self) -> Self:
        """Start it, or its successor on the same socket. Does not wait until it listens."""
        file = self.socket.with_suffix(".json")
        file.write_bytes(msgspec.json.encode(self._spec))
        watched, self._parent = os.pipe()
        command = [sys.executable, "-m", "headgate_engine", "--spec", str(file), "--socket", str(self.socket)]
        command += ["--parent-fd", str(watched), "--linger-s", "0.5"]
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter with our own arguments
            command, pass_fds=[watched], stderr=subprocess.PIPE, env=self._environment
        )
        os.close(watched)
        return self

    def kill(self) -> None:
        """End it as a crash would (SIGKILL), and wait for that."""
        assert self.process is not None
        self.process.kill()
        self._reap()

    def tell_to_end(self) -> None:
        """Tell it to end, as its parent does."""
        assert self._parent is not None
        os.write(self._parent, b"\n")

    def stop(self) -> int:
        """Tell it to end and return its exit code."""
        assert self.process is not None
        self.tell_to_end()
        self._reap()
        return self.process.returncode

    def orphan(self) -> int:
        """Close the pipe that only its parent holds, and return the exit code that follows."""
        assert self.process is not None
        self._let_go()
        return self.process.wait(timeout=10)

    def wait(self, timeout_s: float = 30.0) -> tuple[int, str]:
        """Wait until it ends by itself; exit code and what it wrote to stderr."""
        assert self.process is not None
        _, errors = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, errors.decode(errors="replace")

    def _reap(self) -> None:
        assert self.process is not None
        self.process.communicate(timeout=20)
        self._let_go()

    def _let_go(self) -> None:
        if self._parent is not None:
            os.close(self._parent)
            self._parent = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self._reap()

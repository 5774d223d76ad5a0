"""One child process: started, watched, started again when it ends or hangs, stopped when told.

A child runs in a session of its own, so that a terminal's Ctrl-C reaches only the supervisor. It holds the read
end of a pipe whose write end only the supervisor has: a byte tells it to end, and when the pipe closes, however
the supervisor ended, the child ends too. Each child has its own such pipe: one that makes a shared pipe
non-blocking, as event loops do, makes it so for all. May import programs, status, backoff and parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

import structlog

from headgate_gateway.backoff import Backoff
from headgate_gateway.parent import BEAT_S
from headgate_gateway.settings import child_environment
from headgate_gateway.supervisor.programs import Program

MAX_LINE: Final = 16 * 1024
"""Bytes of one output line; a longer one is passed on in pieces."""

SILENT_LOOKS: Final = 12
"""A child that does not beat for so many looks hangs: a minute."""

HURRIED_S: Final = 1.0
"""What is left to a child of whose end nobody wants to wait any more."""

ChildState = Literal["starting", "ready", "restarting", "stopping", "stopped"]
WriteLine = Callable[[Program, str], None]

_log = structlog.get_logger()


class ChildFailed(Exception):
    """A child ended by itself before it was ever ready."""


class Child:
    """Keeps one program running.

    Attributes:
        state: Where it stands; `ready` means started for programs that do not announce themselves.
        pid: Of the running process.
    """

    def __init__(
        self,
        program: Program,
        *,
        backoff: Backoff,
        write_line: WriteLine,
        on_change: Callable[[], None],
        look_s: float = BEAT_S,
    ) -> None:
        self.program = program
        self.state: ChildState = "starting"
        self.pid: int | None = None
        self._backoff = backoff
        self._write_line = write_line
        self._on_change = on_change
        self._look_s = look_s
        self._line: int | None = None
        self._was_ready = asyncio.Event()
        self._first_end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stop_asked = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._backoff.count

    def start(self) -> None:
        """Start it, and keep it running from now on."""
        self._task = asyncio.create_task(self._keep_running(), name=self.program.name)

    async def ready(self, timeout_s: float) -> None:
        """Wait until it announced itself.

        Raises:
            ChildFailed: It ended before that, or took too long.
        """
        waiting = asyncio.create_task(self._was_ready.wait())
        try:
            both: set[asyncio.Future[Any]] = {waiting, self._first_end}
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._was_ready.is_set():
            return
        if self._first_end.done():
            raise ChildFailed(f"{self.program.name} ended at its start ({_told(self._first_end.result())})")
        raise ChildFailed(f"{self.program.name} was not ready within {timeout_s:g} s")

    async def stop(self, grace_s: float) -> None:
        """End it: told to, and killed when it still runs after `grace_s` seconds. Idempotent."""
        self._stop_asked.set()
        if self._task is None:
            return
        self.tell_to_end()
        self._set_state("stopping")
        done, _ = await asyncio.wait({self._task}, timeout=grace_s)
        if not done:
            _log.warning("killing a child that did not stop", child=self.program.name, after_s=grace_s)
            self.kill()
            await self._task
        self._set_state("stopped")

    def kill(self) -> None:
        """SIGKILL it and whatever it started; it is not started again."""
        self._stop_asked.set()
        self._kill()

    def replace(self, because: str) -> None:
        """SIGKILL what hangs; it is started again."""
        if not self._stop_asked.is_set():
            _log.error("killing a child that hangs", child=self.program.name, because=because)
            self._kill()

    def _kill(self) -> None:
        if (process := self._running()) is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own

    def tell_to_end(self) -> None:
        """By the pipe, told twice it hurries; and by SIGTERM, which ends one that does not listen yet."""
        if (process := self._running()) is not None and self._line is not None:
            with contextlib.suppress(OSError):  # it is gone already
                os.write(self._line, b"\n")
                process.send_signal(signal.SIGTERM)

    def _running(self) -> asyncio.subprocess.Process | None:
        process = self._process
        return None if process is None or process.returncode is not None else process

    def _set_state(self, state: ChildState) -> None:
        if state != self.state:
            self.state = state
            self._on_change()

    async def _keep_running(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stop_asked.is_set():
            born = clock()
            code = await self._run_once()
            # Killed from outside (a machine short of memory, an operator) says nothing against the program.
            if code != -signal.SIGKILL and not self._first_end.done():
                self._first_end.set_result(code)
            if self._stop_asked.is_set():
                return
            delay_s = self._backoff.delay(clock() - born)
            _log.error(
                "a child ended and is started again",
                child=self.program.name,
                how=_told(code),
                restarts=self.restarts,
                in_s=round(delay_s, 2),
            )
            self._set_state("restarting")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_asked.wait(), delay_s)

    async def _run_once(self) -> int:
        """Start the process with a pipe to watch us by, relay its output, and return its exit code."""
        watched, self._line = os.pipe()
        try:
            return await self._run_watching(watched)
        finally:
            os.close(self._line)
            self._line = None

    async def _run_watching(self, parent_fd: int) -> int:
        """As above; closes `parent_fd` once the child has it."""
        read_fd, write_fd = os.pipe() if self.program.announces else (None, None)
        argv = [*self.program.argv, "--parent-fd", str(parent_fd)]
        inherited = [*self.program.inherited, parent_fd]
        if write_fd is not None:
            argv += ["--ready-fd", str(write_fd)]
            inherited.append(write_fd)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=inherited,
                start_new_session=True,
                env=child_environment(**dict(self.program.environment)),
                limit=MAX_LINE,
            )
        except OSError as error:
            self._write_line(self.program, f"cannot start {argv[0]}: {error}")
            if read_fd is not None:
                os.close(read_fd)
            return 127
        finally:
            os.close(parent_fd)
            if write_fd is not None:
                os.close(write_fd)
        self._process, self.pid = process, process.pid
        if self._stop_asked.is_set():  # stop() came while the process was being made
            self.tell_to_end()
        self._set_state("starting" if self.program.announces else "ready")
        announcement = asyncio.create_task(self._announced(read_fd))
        output = asyncio.create_task(self._relay(process))
        try:
            code = await process.wait()
            # A grandchild may keep the pipe open; what the child itself wrote is there already.
            await asyncio.wait({output}, timeout=0.5)
        finally:
            self.pid = None
            announcement.cancel()
            output.cancel()
            await asyncio.gather(announcement, output, return_exceptions=True)
        return code

    async def _announced(self, read_fd: int | None) -> None:
        """Wait for the line on the ready pipe, then for beats; an end without it: the child is going away."""
        if read_fd is None:
            self._was_ready.set()
            return
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb")
        )
        try:
            if await reader.readline():
                self._was_ready.set()
                if self.state == "starting":
                    self._set_state("ready")
                await self._watch(reader)
        finally:
            transport.close()

    async def _watch(self, beats: asyncio.StreamReader) -> None:
        """Replace the child when it is silent for too long; one that has closed the pipe is not watched."""
        clock = asyncio.get_running_loop().time
        silent = 0
        while silent < SILENT_LOOKS:
            began = clock()
            try:
                async with asyncio.timeout(self._look_s):
                    if not await beats.read(4096):
                        return
                silent = 0
            except TimeoutError:
                # A look that comes late says nothing of the child, but of this process, or of a frozen machine.
                silent += clock() - began < 2 * self._look_s
        self.replace(f"it was silent for {SILENT_LOOKS * self._look_s:g} s")

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                line = await process.stdout.read(max(error.consumed, 1))
            except asyncio.IncompleteReadError as error:
                line = error.partial
                if not line:
                    return
            if text := line.decode("utf-8", "replace").rstrip():
                self._write_line(self.program, text)


async def stop_all(children: Iterable[Child], grace_s: float, hurry: asyncio.Event) -> None:
    """End children side by side; once `hurry` is set, those that still run hurry, and soon are killed."""
    ending = list(children)
    if not ending:
        return
    stopping = asyncio.gather(*(child.stop(HURRIED_S if hurry.is_set() else grace_s) for child in ending))
    hurried = asyncio.create_task(hurry.wait())
    both: set[asyncio.Future[Any]] = {stopping, hurried}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        for child in ending:
            child.tell_to_end()
        await asyncio.wait({stopping}, timeout=HURRIED_S)
        for child in ending:
            child.kill()
    hurried.cancel()
    await stopping


def _told(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"

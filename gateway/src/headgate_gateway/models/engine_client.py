"""The client of one engine process: one connection, many requests on it, reconnecting for ever.

An engine that dies fails what it was answering at once; its successor on the same socket is found again by
itself. May import ipc, wire and the plugin API.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from random import Random
from typing import Final, Literal

import msgspec
from headgate_engine import ipc
from headgate_engine.failures import from_wire, without_folders
from headgate_engine.wire import Beat, Cancel, EngineState, Events, Failed, FromEngine, Run, State
from headgate_plugin_api import (
    BackendError,
    Event,
    InferenceRequest,
    InvalidRequest,
    ModelInfo,
    NotReady,
    UpstreamFailed,
    UpstreamTimeout,
)

ClientState = EngineState | Literal["unreachable", "unloaded"]

FIRST_BACKOFF_S: Final = 0.05
MOST_BACKOFF_S: Final = 2.0

SILENCE_MS: Final = 3_000
"""A beat is due every second, so a shorter silence says nothing."""

TIMEOUT_GRACE_S: Final = 1.0
"""Seconds beyond a request's timeout that the engine gets to say so itself."""


class _Stream:
    """The answer to one request as it comes in: written by the connection, read by one caller."""

    def __init__(self) -> None:
        self.waker: asyncio.Future[None] | None = None
        self.events: deque[Event] = deque()
        self.done = False
        self.error: BackendError | None = None

    def wake(self) -> None:
        if self.waker is not None and not self.waker.done():
            self.waker.set_result(None)

    def take(self, events: tuple[Event, ...], *, done: bool) -> None:
        self.events.extend(events)
        self.done = self.done or done
        self.wake()

    def fail(self, error: BackendError) -> None:
        if not self.done:
            self.done, self.error = True, error
            self.wake()

    async def more(self) -> None:
        """Wait until there is an event or the end."""
        while not self.events and not self.done:
            self.waker = asyncio.get_running_loop().create_future()
            try:
                await self.waker
            finally:
                self.waker = None


class EngineClient:
    """One worker's connection to one engine.

    Attributes:
        name: Which replica this is, for messages.
        state: What the engine last said, `unreachable` when there is none, `unloaded` when there is to be none;
            `failed` stays until its successor speaks.
        reason: Why it failed.
        progress: How far a load has come, from 0 to 1, and a word for people.
        info: What the model said of itself when it was last ready.
        beat: The last heartbeat of the living engine.
        was_ready: Whether the model was ever ready, also before this worker began: a file says so
            (`Layout.engine_was_ready`).
        known: Set once it is known where the engine stands, or that there is none.
    """

    def __init__(
        self,
        socket: Path,
        *,
        name: str,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] | None = None,
        unloaded: Path | None = None,
        ready_once: Path | None = None,
    ) -> None:
        self.name = name
        self.state: ClientState = "unreachable"
        self.reason = ""
        self.progress: tuple[float, str] = (0.0, "")
        self.info: ModelInfo | None = None
        self.beat: Beat | None = None
        self.was_ready = ready_once is not None and ready_once.exists()
        self.known = asyncio.Event()
        self._socket = socket
        self._random = random
        self._clock = clock
        self._on_change = on_change
        self._unloaded = unloaded
        self._ready_once = ready_once
        self._codec: ipc.Codec[FromEngine] = ipc.Codec(FromEngine)
        self._connection: ipc.Connection[FromEngine] | None = None
        self._streams: dict[str, _Stream] = {}
        self._heard_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to connect. Does not wait for it."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_connected(), name=f"engine {self.name}")

    async def close(self) -> None:
        """Disconnect; what is in flight fails."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def in_flight(self) -> int:
        """Requests of this worker that the engine is answering."""
        return len(self._streams)

    @property
    def stalled_ms(self) -> int:
        """How long the model's loop has been in one pass, or how long nothing was heard of a living engine."""
        if self.beat is None:
            return 0
        silent_ms = int((self._clock() - self._heard_at) * 1000)
        return max(self.beat.stalled_ms, silent_ms if silent_ms > SILENCE_MS else 0)

    async def run(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """Ask the engine and yield the answer's events as they come. Closing it early cancels the request.

        Raises:
            BackendError: What the engine said; `NotReady` while it loads, failed or is gone; `UpstreamFailed`
                (retryable) when it dies; `UpstreamTimeout` when it says nothing in time.
        """
        connection = self._ready_connection()
        stream_id = self._stream_id(request.id)
        stream = self._streams[stream_id] = _Stream()
        timer = asyncio.get_running_loop().call_later(
            request.timeout_ms / 1000 + TIMEOUT_GRACE_S,
            stream.fail,
            UpstreamTimeout(f"{self.name} did not answer within {request.timeout_ms} ms"),
        )
        try:
            # An engine never needs the client's own document; the payload says it all.
            sent = msgspec.structs.replace(request, id=stream_id, native=None)
            self._send_run(connection, sent)
            while True:
                await stream.more()
                while stream.events:
                    yield stream.events.popleft()
                if stream.error is not None:
                    raise stream.error
                if stream.done:
                    return
        finally:
            timer.cancel()
            self._leave(connection, stream_id, stream)

    def _ready_connection(self) -> ipc.Connection[FromEngine]:
        if self._connection is None or self.state != "ready":
            because = f": {self.reason}" if self.reason else ""
            raise NotReady(f"{self.name} is {self.state}{because}", retry_after_s=1.0)
        return self._connection

    def _stream_id(self, request_id: str) -> str:
        """The request's id, made different while an earlier attempt with it has not ended over there."""
        stream_id, attempt = request_id, 1
        while stream_id in self._streams:
            attempt += 1
            stream_id = f"{request_id}~{attempt}"
        return stream_id

    def _send_run(self, connection: ipc.Connection[FromEngine], request: InferenceRequest) -> None:
        try:
            connection.send(Run(request))
        except ipc.ConnectionLost as error:
            raise UpstreamFailed(f"{self.name} is gone", retryable=True) from error
        except ipc.FrameTooLarge as error:
            raise InvalidRequest(f"the request is too large for an engine: {error}") from error

    def _leave(self, connection: ipc.Connection[FromEngine], stream_id: str, stream: _Stream) -> None:
        """The caller needs no more. An engine that has not ended it is told; the id is taken until it has."""
        over = stream.done and not isinstance(stream.error, UpstreamTimeout)
        if over or not connection.is_open:
            if self._streams.get(stream_id) is stream:
                del self._streams[stream_id]
            return
        stream.done = True
        with contextlib.suppress(ipc.ConnectionLost):
            connection.send(Cancel(stream_id))

    # -- the connection

    async def _keep_connected(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                connection = await ipc.connect(
                    self._socket, lambda: ipc.Connection(self._codec, self._on_message, self._on_close)
                )
            except OSError:
                self._look_whether_unloaded()
                self.known.set()
                # Full jitter would sometimes hammer; half keeps the replicas apart and the wait honest.
                await asyncio.sleep(backoff_s * (0.5 + self._random.random() / 2))
                backoff_s = min(MOST_BACKOFF_S, backoff_s * 2)
                continue
            backoff_s = FIRST_BACKOFF_S
            self._connection = connection
            try:
                await connection.closed()
                await asyncio.sleep(FIRST_BACKOFF_S)
            finally:
                connection.abort()

    def _look_whether_unloaded(self) -> None:
        """Nobody listens: see whether that is how it should be, which a file says (`Layout.engine_unloaded`)."""
        state: ClientState = self.state
        if self._unloaded is not None and self._unloaded.exists():
            state = "unloaded"
        elif state == "unloaded":
            state = "unreachable"
        if state != self.state:
            self.state, self.reason = state, ""
            self._changed()

    def _on_message(self, _connection: ipc.Connection[FromEngine], message: FromEngine) -> None:
        self._heard_at = self._clock()
        match message:
            case Events():
                stream = self._streams.get(message.request_id)
                if stream is None:
                    return
                if message.done:
                    del self._streams[message.request_id]
                if not stream.done:
                    stream.take(message.events, done=message.done)
            case Failed():
                stream = self._streams.pop(message.request_id, None)
                if stream is not None:
                    stream.fail(from_wire(message))
            case Beat():
                self.beat = message
            case State():
                self._on_state(message)

    def _on_state(self, message: State) -> None:
        self.state = message.state
        self.reason = without_folders(message.reason)
        self.progress = (message.fraction, message.what)
        if message.info is not None:
            self.info = message.info
        if message.state == "ready" and not self.was_ready:
            self._note_ready()
        self.known.set()
        self._changed()

    def _note_ready(self) -> None:
        self.was_ready = True
        if self._ready_once is not None:
            with contextlib.suppress(OSError):  # a full disk; the next worker then finds out for itself
                self._ready_once.touch()

    def _on_close(self, _connection: ipc.Connection[FromEngine], error: Exception | None) -> None:
        self._connection = None
        self.beat = None
        self.known.set()
        if self.state != "failed":
            self.state, self.reason = "unreachable", ""
        streams, self._streams = self._streams, {}
        cause = f": {error}" if error is not None else ""
        for stream in streams.values():
            stream.fail(UpstreamFailed(f"{self.name} died while it was answering{cause}", retryable=True))
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

"""The host: one asyncio loop for the socket, one thread for the model, and what goes between them.

The model's thread loads the model, drives it and closes it. It may be busy for seconds; the loop goes on
answering peers, and its heartbeat says how long the model's present pass has taken. May import everything of
this package, and the plugin API.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from headgate_plugin_api import (
    BackendError,
    BatchModel,
    EngineBackend,
    InferenceRequest,
    InvalidRequest,
    LoadedModel,
    LoadFailed,
    LoadProgress,
    NotReady,
    StepModel,
    UpstreamFailed,
)

from headgate_engine import ipc
from headgate_engine.batchloop import BatchLoop
from headgate_engine.discovery import check_spec, find_backend
from headgate_engine.failures import to_wire
from headgate_engine.pulse import Pulse
from headgate_engine.runner import Runner
from headgate_engine.spec import EngineSpec
from headgate_engine.steploop import StepLoop
from headgate_engine.wire import Beat, Cancel, Events, Failed, Run, State, ToEngine

log = logging.getLogger(__name__)

BEAT_S: Final = 1.0
"""Seconds between heartbeats."""

PEER_BACKLOG: Final = 256 * 1024 * 1024
"""Bytes that may wait for one peer. A peer that is further behind has stopped reading and is dropped."""

STOP_S: Final = 10.0
"""Seconds that the model's thread gets to come out of its pass and close the model."""

EXIT_OK: Final = 0
EXIT_LOAD_FAILED: Final = 3
EXIT_BROKEN: Final = 4

Peer = ipc.Connection[ToEngine]


class Host:
    """An engine process from its first line to its exit code."""

    def __init__(
        self, spec: EngineSpec, *, linger_s: float, find: Callable[[str], EngineBackend] = find_backend
    ) -> None:
        """Args:
        spec: What to load.
        linger_s: Seconds that a failed load stays reachable, so that peers learn the reason.
        find: Finds the backend by name.
        """
        self._spec = spec
        self._linger_s = linger_s
        self._find = find
        self._state = State(state="loading", what="starting")
        self._peers: set[Peer] = set()
        self._owners: dict[str, Peer] = {}
        self._pulse = Pulse()
        self._runner: Runner | None = None
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._broken = False
        self._thread = threading.Thread(target=self._model_thread, name="model", daemon=True)
        self._thread_ended = asyncio.Event()

    async def serve(self, socket: Path) -> int:
        """Load the model and answer peers until `stop`; returns the process's exit code."""
        codec: ipc.Codec[ToEngine] = ipc.Codec(ToEngine)
        server = await ipc.listen(
            socket, lambda: ipc.Connection(codec, self._on_message, self._on_close, self._on_open)
        )
        inode = socket.stat().st_ino
        beat = asyncio.create_task(self._beat())
        self._thread.start()
        try:
            await self._ended.wait()
            if self._state.state == "failed":
                await self._linger()
                return EXIT_LOAD_FAILED
            if self._broken:
                return EXIT_BROKEN
            await self._unload()
            return EXIT_OK
        finally:
            beat.cancel()
            server.close()
            await self._part()
            _remove(socket, inode)

    def stop(self) -> None:
        """Fail what is in flight as cancelled, close the model, and let `serve` return."""
        self._stop.set()
        self._ended.set()

    async def _linger(self) -> None:
        """Stay reachable for a while with the reason, unless told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self._linger_s)

    async def _unload(self) -> None:
        self._change(State(state="stopping", info=self._state.info))
        if self._runner is not None:
            self._runner.stop()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._thread_ended.wait(), STOP_S)

    async def _part(self) -> None:
        """Let go of the peers, what is queued for them first."""
        peers = list(self._peers)
        for peer in peers:
            peer.close()
        if peers:
            await asyncio.wait([asyncio.ensure_future(peer.closed()) for peer in peers], timeout=1.0)

    # -- the model's thread

    def _model_thread(self) -> None:
        """Load, drive, close. This thread never ends unnoticed: a model without it would be a zombie."""
        try:
            model = self._load()
            runner = self._runner_for(model)
            info = model.info
        except BaseException as error:  # noqa: BLE001 - whatever it was, it is the reason that people will read
            self._call(self._load_failed, error)
            return
        self._call(self._loaded, runner, info)
        try:
            runner.run()
        except BaseException:
            log.exception("%s: the model's loop broke; the process ends", self._spec.id)
            self._call(self._loop_broke)
            return
        try:
            model.close()
        except Exception:
            log.exception("%s: closing failed", self._spec.id)
        self._call(self._thread_ended.set)

    def _load(self) -> LoadedModel:
        backend = self._find(self._spec.backend)
        check_spec(backend, self._spec)
        return backend.load(self._spec, self._report)

    def _runner_for(self, model: LoadedModel) -> Runner:
        if isinstance(model, StepModel):
            return StepLoop(model, self._spec, self._deliver, self._pulse)
        assert isinstance(model, BatchModel)
        return BatchLoop(model, self._spec, self._deliver, self._pulse)

    def _report(self, progress: LoadProgress) -> None:
        fraction = min(1.0, max(0.0, progress.fraction))
        self._call(self._change, State(state="loading", fraction=fraction, what=progress.what))

    def _deliver(self, messages: Sequence[Events | Failed]) -> None:
        self._call(self._hand_out, messages)

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call on the loop. After the loop has closed nobody is left to tell."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    # -- the loop

    def _load_failed(self, error: BaseException) -> None:
        reason = error.message if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
        details = None if isinstance(error, LoadFailed) else error
        log.error("%s: loading failed: %s", self._spec.id, reason, exc_info=details)
        self._change(State(state="failed", reason=reason))
        self._ended.set()

    def _loop_broke(self) -> None:
        self._broken = True
        self._ended.set()

    def _loaded(self, runner: Runner, info: Any) -> None:
        self._runner = runner
        if self._stop.is_set():
            runner.stop()
            return
        log.info("%s: ready on %s %s", self._spec.id, info.device, info.detail)
        self._change(State(state="ready", fraction=1.0, info=info))

    def _change(self, state: State) -> None:
        self._state = state
        for peer in list(self._peers):
            self._send(peer, state)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            runner = self._runner
            beat = Beat(
                stalled_ms=self._pulse.stalled_ms,
                waiting=runner.waiting if runner is not None else 0,
                running=runner.running if runner is not None else 0,
                per_second=self._pulse.per_second,
            )
            for peer in list(self._peers):
                self._send(peer, beat)

    def _on_open(self, peer: ipc.Connection[ToEngine]) -> None:
        self._peers.add(peer)
        self._send(peer, self._state)

    def _on_close(self, peer: ipc.Connection[ToEngine], error: Exception | None) -> None:
        self._peers.discard(peer)
        if error is not None and not isinstance(error, ConnectionError):
            log.warning("%s: a peer was dropped: %s", self._spec.id, error)
        for request_id in [request_id for request_id, owner in self._owners.items() if owner is peer]:
            del self._owners[request_id]
            if self._runner is not None:
                self._runner.cancel(request_id)

    def _on_message(self, peer: ipc.Connection[ToEngine], message: ToEngine) -> None:
        if isinstance(message, Cancel):
            if self._runner is not None and self._owners.get(message.request_id) is peer:
                self._runner.cancel(message.request_id)
            return
        assert isinstance(message, Run)
        request = message.request
        try:
            self._submit(peer, request)
        except BackendError as error:
            self._send(peer, to_wire(request.id, error))

    def _submit(self, peer: Peer, request: InferenceRequest) -> None:
        if self._runner is None or self._state.state != "ready":
            raise NotReady(f"{self._spec.id} is {self._state.state}")
        if request.id in self._owners:
            raise InvalidRequest(f"request {request.id} is in flight already", path="id")
        self._runner.submit(request)
        self._owners[request.id] = peer

    def _hand_out(self, messages: Sequence[Events | Failed]) -> None:
        for message in messages:
            peer = self._owners.get(message.request_id)
            if peer is None:
                continue
            if isinstance(message, Failed) or message.done:
                del self._owners[message.request_id]
            self._send(peer, message)

    def _send(self, peer: Peer, message: State | Beat | Events | Failed) -> None:
        """Send, whatever the message or the peer is like: neither may end the process."""
        try:
            peer.send(message)
        except ipc.ConnectionLost:
            return
        except (ipc.FrameTooLarge, msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            log.error("%s: a %s cannot be sent: %s", self._spec.id, type(message).__name__, error)  # noqa: TRY400
            if isinstance(message, Events):
                self._give_up(peer, message, error)
            return
        if peer.backlog > PEER_BACKLOG:
            log.warning("%s: a peer has stopped reading and is dropped", self._spec.id)
            peer.abort()

    def _give_up(self, peer: Peer, message: Events, error: Exception) -> None:
        """An answer that cannot be encoded has ended for its caller; the model need not go on with it."""
        self._owners.pop(message.request_id, None)
        if not message.done and self._runner is not None:
            self._runner.cancel(message.request_id)
        self._send(
            peer,
            to_wire(message.request_id, UpstreamFailed(f"the model's answer cannot be sent: {error}")),
        )


def _remove(socket: Path, inode: int) -> None:
    """Remove our socket, unless a successor listens in its place already."""
    with contextlib.suppress(FileNotFoundError):
        if socket.stat().st_ino == inode:
            socket.unlink()

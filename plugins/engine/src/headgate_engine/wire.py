"""Messages between an engine process and whoever talks to it (workers, the supervisor).

Any number of peers may connect. On connecting, a peer is told the state at once and again at each change; a
heartbeat says when the loop last came round. May import ipc and the plugin API.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from headgate_plugin_api import Event, InferenceRequest, ModelInfo, Usage

EngineState = Literal["loading", "ready", "failed", "stopping"]


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Peer to engine: answer this request. The request id is the stream id on this connection."""

    request: InferenceRequest


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Peer to engine: nobody waits for this request any more. Answered by `Failed(code="cancelled")`, or by
    whatever was already on its way.
    """

    request_id: str


ToEngine = Run | Cancel


class State(msgspec.Struct, frozen=True, kw_only=True, tag="state"):
    """Engine to peers: where it stands. `reason` says why a load failed; `info` is there once ready."""

    state: EngineState
    fraction: float = 0.0
    what: str = ""
    reason: str = ""
    info: ModelInfo | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag="beat"):
    """Engine to peers, about once a second: the model's loop is alive.

    `stalled_ms` is how long the loop has been in its present pass: a model that hangs inside a batch shows
    here, although its process lives. `waiting` and `running` are requests; `per_second` the measured rate at
    which requests are finished, from which Retry-After is computed.
    """

    stalled_ms: int
    waiting: int
    running: int
    per_second: float


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Engine to peer: events of one request, in order; `done` with the last of them."""

    request_id: str
    events: tuple[Event, ...]
    done: bool = False


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Engine to peer: a request ended without a complete answer.

    `code` is a `BackendError.code`; `usage` what was consumed before it failed, if known.
    """

    request_id: str
    code: str
    message: str
    path: str | None = None
    retry_after_ms: int | None = None
    usage: Usage | None = None


FromEngine = State | Beat | Events | Failed

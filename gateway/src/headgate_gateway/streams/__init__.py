"""Resumable streams: kept by the worker that makes them, read by whichever worker the client comes back to.

May import domain, the plugin API, layout and ipc.
"""

from headgate_gateway.streams.frames import Ahead, Runs, frames_of, join_runs, numbered, split_runs
from headgate_gateway.streams.keeper import Streams
from headgate_gateway.streams.siblings import Siblings
from headgate_gateway.streams.stream import (
    Busy,
    KeptStream,
    NotKept,
    OwnerLost,
    Piece,
    Reading,
    Superseded,
)

__all__ = [
    "Ahead",
    "Busy",
    "KeptStream",
    "NotKept",
    "OwnerLost",
    "Piece",
    "Reading",
    "Runs",
    "Siblings",
    "Streams",
    "Superseded",
    "frames_of",
    "join_runs",
    "numbered",
    "split_runs",
]

"""What the supervisor knows of its children, as a file that `headgate` commands read. Imports layout only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["ledger", "worker", "engine", "outbox"]
Phase = Literal["starting", "serving", "stopping"]


class ChildStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One child process.

    Attributes:
        name: `ledger`, `worker 0`, `minilm/0`, `outbox`.
        pid: None while it does not run.
        state: `starting`, `ready`, `restarting`, `stopped`; for engines also `loading` and `failed`.
        restarts: How often it was started again.
        model: The model that an engine runs.
        device: Where the model runs, once it is loaded.
        detail: What is being done while loading, one line about the model when ready, the reason when failed.
        fraction: How far loading has come, 0 to 1.
    """

    name: str
    kind: Kind
    pid: int | None
    state: str
    restarts: int = 0
    model: str | None = None
    device: str = ""
    detail: str = ""
    fraction: float = 0.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole house.

    Attributes:
        address: Where clients connect, `http://host:port`.
        admin_address: Where the admin API is alone; empty where it stands beside the rest.
        generation: How many configs were applied; 1 is the one it started with.
        reloads: How many reloads were tried and are over.
        reload_error: What the last one failed with.
    """

    pid: int
    phase: Phase
    address: str
    admin_address: str = ""
    generation: int = 1
    reloads: int = 0
    reload_error: str | None = None
    children: tuple[ChildStatus, ...] = ()

    @property
    def engines(self) -> tuple[ChildStatus, ...]:
        """The engines among the children."""
        return tuple(child for child in self.children if child.kind == "engine")


def write_status(status: Status, path: Path) -> None:
    """Replace the status file at once: a reader sees the old or the new, never half."""
    draft = path.with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(status))
    draft.replace(path)


def read_status(path: Path) -> Status | None:
    """What the running supervisor last wrote, or None."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Status)
    except (FileNotFoundError, msgspec.DecodeError):
        return None

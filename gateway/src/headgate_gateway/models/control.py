"""Asking the supervisor to start or end the engines of a model, over a socket that only this user can open.

A connection carries one question and its answer. May import ipc and layout.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import msgspec
from headgate_engine import ipc

from headgate_gateway.layout import Layout

Action = Literal["load", "unload"]

PATIENCE_S: Final = 900.0
"""How long a model may take to load."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Have the engines of a local model run, or not; `actor` is kept in the audit log."""

    action: Action
    model: str
    actor: str = "cli"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        code: `done`; `unknown` where the config has no such model; `remote` where it has no engines; `failed`
            where its load did.
        message: For people.
    """

    code: Literal["done", "unknown", "remote", "failed"]
    message: str = ""


class NobodyThere(Exception):
    """No supervisor serves, or it ended before it answered."""


async def ask(layout: Layout, action: Action, model: str, *, actor: str = "cli") -> Told:
    """Ask, and wait until it is done.

    Raises:
        NobodyThere: Nothing serves.
        TimeoutError: It is still not done after `PATIENCE_S`.
    """
    codec: ipc.Codec[Told] = ipc.Codec(Told)
    answer: asyncio.Future[Told] = asyncio.get_running_loop().create_future()

    def heard(_connection: ipc.Connection[Told], told: Told) -> None:
        if not answer.done():
            answer.set_result(told)

    def closed(_connection: ipc.Connection[Told], _error: Exception | None) -> None:
        if not answer.done():
            answer.set_exception(NobodyThere("the supervisor ended before it answered"))

    try:
        connection = await ipc.connect(layout.control_socket, lambda: ipc.Connection(codec, heard, closed))
    except OSError as error:
        raise NobodyThere(f"nothing serves {layout.data_dir}") from error
    try:
        connection.send(Ask(action=action, model=model, actor=actor))
        async with asyncio.timeout(PATIENCE_S):
            return await answer
    finally:
        answer.cancel()
        connection.close()

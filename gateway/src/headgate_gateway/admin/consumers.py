"""Setting a consumer of usage records back or on, or forgetting it. May import usage, plugins and settings."""

from __future__ import annotations

import asyncio

import msgspec

from headgate_gateway.admin.usage import UsageReader
from headgate_gateway.domain.commands import FARTHEST, MoveCursor, Rejected
from headgate_gateway.plugins import load_consumers
from headgate_gateway.settings import Settings


class ResetConsumer(msgspec.Struct, frozen=True, kw_only=True):
    """Where a consumer goes on.

    Attributes:
        to: `beginning`, `now`, or the record that it is given next: a request id, or its number (`seq`).
    """

    to: str


async def resetting(reader: UsageReader, settings: Settings, consumer: str, to: str) -> MoveCursor | Rejected:
    """The command that lets a consumer go on elsewhere; one that has not begun yet begins there.

    Raises:
        QueryTooSlow: It took too long.
        UsageUnavailable: The store cannot be asked.
    """
    known = {found.name for found in await reader.consumers()}
    if consumer not in known:
        known |= (await asyncio.to_thread(load_consumers, settings.plugin_names)).keys()
    if consumer not in known:
        return _unknown(consumer, known)
    if to == "beginning":
        return MoveCursor(consumer=consumer, position=0)
    if to == "now":
        return MoveCursor(consumer=consumer, position=await reader.last())
    if to.isascii() and to.isdigit() and len(to) < len(str(FARTHEST)):
        return MoveCursor(consumer=consumer, position=max(0, int(to) - 1))
    record = await reader.record(to)
    if record is None:
        expected = "beginning, now, or the request id or number of a record"
        return Rejected(code="invalid", message=f"expected {expected}, not {to[:64]!r}", field="to")
    return MoveCursor(consumer=consumer, position=record.seq - 1)


async def removing(reader: UsageReader, consumer: str) -> MoveCursor | Rejected:
    """The command that forgets how far a consumer has come.

    Raises:
        QueryTooSlow: It took too long.
        UsageUnavailable: The store cannot be asked.
    """
    known = {found.name for found in await reader.consumers()}
    return MoveCursor(consumer=consumer, position=None) if consumer in known else _unknown(consumer, known)


def _unknown(consumer: str, known: set[str]) -> Rejected:
    there = f"known: {', '.join(sorted(known))}" if known else "there are none"
    return Rejected(
        code="not_found", message=f"there is no consumer {consumer[:64]!r} ({there})", field="consumer"
    )

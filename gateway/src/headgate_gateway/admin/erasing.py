"""Erasing tags: which requests are meant is found out here, in slices; the ledger erases, a few at a time.

May import usage, commands and the ledger. Written without waiting, as steps: a worker takes them on a thread
beside its event loop, the command line one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from headgate_gateway.admin.commands import (
    AccountFound,
    Command,
    Erased,
    ErasePersonal,
    GetAccount,
    Rejected,
    Result,
)
from headgate_gateway.admin.service import CommandRejected
from headgate_gateway.admin.usage import UsageReader
from headgate_gateway.domain.commands import Moment
from headgate_gateway.domain.erasing import MOST_ERASED
from headgate_gateway.ledger.personal import Place, tags_in
from headgate_gateway.ledger.store.read_only import open_readonly
from headgate_gateway.settings import Settings

R = TypeVar("R", bound=Result)

SCANNED: Final = 50_000
"""Requests with tags that are looked at in one go; whoever asked goes on from there."""

SCATTERED: Final = 100
"""Requests that lie far apart are erased together up to so many: each is a page of the store."""

_PLACE: Final = re.compile(r"([0-9]{1,19})\.([!-~]{1,256})")
_NEVER: Final = 2**63 - 1


class EraseTags(msgspec.Struct, frozen=True, kw_only=True):
    """Erase the tags of requests that have all of `tags`, or of all admitted before a time.

    Attributes:
        tags: Names and values.
        project: Its id or name; only of its requests.
        before: Only of requests admitted before then; may stand without tags.
        after: Where to go on, from the answer before.
    """

    tags: dict[str, str] = {}
    project: str | None = None
    before: Moment | None = None
    after: str | None = None


class TagsErased(msgspec.Struct, frozen=True, kw_only=True):
    """What was done so far.

    Attributes:
        erased: Of how many requests the tags were erased.
        after: Where there may be more; None when that was all.
        copies: Files beside the store, made before migrations, which still have them.
    """

    erased: int
    after: str | None = None
    copies: tuple[str, ...] = ()


Steps = Generator[Command, Result, TagsErased]


def erase(reader: UsageReader, asked: EraseTags, settings: Settings) -> Steps:
    """The commands that carry it out; each is to be answered by what the ledger answered.

    Args:
        reader: Where requests are found.
        asked: What to erase.
        settings: Of the deployment.

    Raises:
        CommandRejected: It cannot be meant, or the ledger refused.
        QueryTooSlow: The store took too long.
        UsageUnavailable: The store cannot be asked.
    """
    place = _begin(asked)
    project = None
    if asked.project is not None:
        project = _project(asked.project, (yield GetAccount(id=asked.project)))
    before = _NEVER if asked.before is None else max(0, min(asked.before, _NEVER))
    wanted: list[Place] = []
    erased = scanned = 0
    while True:
        found = reader.set_aside(place, before)
        wanted += _meant(found, asked.tags, project)
        scanned += len(found)
        place = found[-1][:2] if found else place
        is_over = not found or scanned >= SCANNED
        if is_over or len(wanted) >= SCATTERED:
            for start in range(0, len(wanted), MOST_ERASED):
                result = yield ErasePersonal(
                    requests=tuple(wanted[start : start + MOST_ERASED]), tags=tuple(sorted(asked.tags)),
                    project=project, before=asked.before,
                )  # fmt: skip
                erased += _expected(result, Erased).rows
            wanted = []
        if is_over:
            after = f"{place[0]}.{place[1]}" if found else None
            return TagsErased(erased=erased, after=after, copies=_copies(settings.layout.store))


def take_steps(steps: Steps, command: Callable[[Command], Any]) -> TagsErased:
    """Take the steps one after the other."""
    answer: Any = None
    while not isinstance(asked := _next(steps, answer), TagsErased):
        answer = command(asked)
    return asked


async def carry_out(steps: Steps, command: Callable[[Command], Awaitable[Result]]) -> TagsErased:
    """Take the steps, those that read on a thread."""
    answer: Any = None
    while not isinstance(asked := await asyncio.to_thread(_next, steps, answer), TagsErased):
        answer = await command(asked)
    return asked


def _next(steps: Steps, answer: Any) -> Command | TagsErased:
    try:
        return steps.send(answer)
    except StopIteration as end:
        done: TagsErased = end.value
        return done


def _meant(
    found: Sequence[tuple[int, str, str, bytes]], tags: dict[str, str], project: str | None
) -> Iterator[Place]:
    for at_us, request_id, owner, fields in found:
        if project in (None, owner) and tags.items() <= tags_in(fields).items():
            yield at_us, request_id


def _copies(store: Path) -> tuple[str, ...]:
    """Copies of the store that have the table."""
    return tuple(path.name for path in sorted(store.parent.glob(f"{store.name}.before-*")) if _has_table(path))


def _has_table(store: Path) -> bool:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(open_readonly(store)) as db:
        return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'personal'").fetchone() is not None
    return True  # who cannot read it cannot say that it has none


def _begin(asked: EraseTags) -> Place:
    if not asked.tags and asked.before is None:
        raise _invalid("tags", "expected tags, or `before` for those of all requests admitted before then")
    if asked.after is None:
        return -1, ""
    if (found := _PLACE.fullmatch(asked.after)) is None:
        raise _invalid("after", "expected the `after` of the answer before")
    return min(int(found[1]), _NEVER), found[2]


def _project(name: str, answer: Result) -> str:
    account = _expected(answer, AccountFound).account
    if account.kind != "project":
        raise _invalid("project", f"{name[:64]!r} is the id of another kind of account: {account.kind}")
    return account.id


def _expected(answer: Result, kind: type[R]) -> R:
    if isinstance(answer, Rejected):
        raise CommandRejected(answer)
    assert isinstance(answer, kind)
    return answer


def _invalid(field: str, text: str) -> CommandRejected:
    return CommandRejected(Rejected(code="invalid", message=text, field=field))

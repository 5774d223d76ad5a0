"""Archiving: history before a seal goes into files, and only then leaves the store.

For each seal a file is written, synced, read again and derived like any history; then the ledger notes it, in
its chain, and lets go of its rows bit by bit. Whoever is killed on the way begins again where it stands: a file
has its name only once it is whole, and rows leave only once a note covers them. May import archive, stages,
history and disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from headgate_gateway.crashpoints import reach
from headgate_gateway.disk import sync
from headgate_gateway.domain.keeping import KeepArchive, Left
from headgate_gateway.ledger import archive, seal
from headgate_gateway.ledger.history import History
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.stages import REMEMBERED_US, Stages


class NotYet(Exception):
    """What was asked to be archived is still needed; the message says until when, and by whom."""


class FolderBusy(Exception):
    """Somebody else archives into the folder now."""


@dataclass(frozen=True)
class Archived:
    """A file that was made.

    Attributes:
        path: Where.
        seal: The one that it ends at.
        until_us: That seal's time.
        rows: How many there are in it.
        size: Its bytes.
        hash: Its SHA-256.
    """

    path: Path
    seal: int
    until_us: int
    rows: int
    size: int
    hash: bytes


def needed_since(history: History, now_us: int) -> tuple[int, str]:
    """Since when history is still needed, and by whom: nothing younger may be archived.

    The one place that says so: `History.needed` has what only a store knows.
    """
    claims = (now_us - REMEMBERED_US, "idempotency keys and requests that end late may still need it")
    return min([claims, *history.needed()])


def archive_before(
    history: History, key: bytes, folder: Path, before_us: int, now_us: int, keep: Callable[[KeepArchive], None]
) -> Generator[Archived]:
    """Archive what came before the newest seal that was made by a moment; each file as it is done.

    Args:
        history: The store.
        key: From `chain.chain_key`.
        folder: Where the files go; made when it is missing.
        before_us: The moment.
        now_us: Now.
        keep: Has the ledger carry a command out.

    Raises:
        NotYet: What came before that moment is still needed.
        FolderBusy: Somebody else archives into the folder.
        Differs: What is to be archived, or a file that is there already, is not what its seals say.
        OSError: A file cannot be written.
    """
    since_us, why = needed_since(history, now_us)
    if before_us > since_us:
        if since_us <= 0:
            raise NotYet(f"nothing can be archived yet: {why}")
        until = f"{datetime.fromtimestamp(since_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
        raise NotYet(f"what came after {until} cannot be archived yet: {why}")
    _make(folder)
    with _alone_in(folder):
        begins = max((row.seal for row in history.archives()), default=0)
        begin = seal.joined(history.seal(begins), key) if begins else None
        if begins and begin is None:
            raise Differs(f"seal {begins}, at which the archive ends, is missing or was changed")
        number = history.next_seal(begins)
        while number is not None:
            end = seal.joined(history.seal(number), key)
            if end is not None and end.at_us > before_us:
                return
            if end is not None:  # a seal that was never whole is passed over
                yield _stage(history, key, folder / archive.name_of(number), begins, begin, number, end, keep)
                begins, begin = number, end
            number = history.next_seal(number)


def _stage(
    history: History, key: bytes, path: Path, begins: int, begin: seal.Seal | None, ends: int, end: seal.Seal,
    keep: Callable[[KeepArchive], None],
) -> Archived:  # fmt: skip
    if path.exists():  # by a run that was killed before the ledger noted it
        counts = _verify(history, key, path, begins, end)
    else:
        partial = archive.partial(path)
        partial.unlink(missing_ok=True)
        try:
            archive.write(history, partial, begins=begins, begin=begin, ends=ends, end=end)
            counts = _verify(history, key, partial, begins, end)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        partial.rename(path)
    sync(path.parent)
    reach("archive.whole")
    fingerprint, size = archive.fingerprint(path)
    left = tuple(
        Left(chain=chain, until=place.number, count=counts.get(chain, 0))
        for chain, place in sorted(end.places.items())
        if place.number
    )
    keep(
        KeepArchive(
            seal=ends, until_us=end.at_us, file=str(path.absolute()), hash=fingerprint, size=size, left=left
        )
    )
    reach("archive.kept")
    return Archived(path, ends, end.at_us, sum(counts.values()), size, fingerprint)


def _verify(history: History, key: bytes, path: Path, begins: int, end: seal.Seal) -> dict[int, int]:
    """Read a file again, derive it, and count its rows by chain."""
    with archive.opened(path, history) as file:
        if file.begins != begins or Stages(file, key).through(file, file.begins, file.ends) != end:
            raise Differs("it is another part of the history: move it away")
        return file.counts()


def _make(folder: Path) -> None:
    """Make a folder, which must still be there after power loss."""
    folder = folder.absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderBusy(f"somebody else archives into {folder} now") from None
        yield
    finally:
        os.close(fd)

"""Flight files: what a worker had in flight, in a form that survives `kill -9` of the worker.

A file belongs to one life of a worker (its incarnation), which holds an exclusive lock on it from before the file
has its name until the process ends. Each slot has two copies, written in turn, each with a checksum: a store that
is torn by a crash loses at most the newest copy. The writer maps the file, so that bumping a count is no system
call; a reader uses read(), because a mapping of a file that shrinks kills the reader.

A file that has done its work is kept as its worker's spare, for the worker's next life: whoever dies while the
disk is full can come back. May import domain and disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args
from zlib import crc32

from headgate_plugin_api import UsageSource

from headgate_gateway.disk import allocate
from headgate_gateway.domain.admission import Outcome
from headgate_gateway.domain.pricing import Counts

SLOTS: Final = 4096
ID_BYTES: Final = 36
"""Bytes of the longest request id that fits a slot."""

FREE, ADMITTED, DISPATCHED, ENDED = range(4)
"""States of a slot: unused; admission asked for; upstream or engine about to be asked; settlement asked for."""

_MAGIC: Final = b"HGFLIGHT1"
_HEADER: Final = struct.Struct("<9sxHI32s36s")
_HEADER_BYTES: Final = 128
_COPY: Final = struct.Struct("<Q36sB3s72s")
_COUNTS: Final = struct.Struct("<9Q")
_CHECK: Final = struct.Struct("<I")
_WRITTEN: Final = struct.Struct(f"<{_COPY.size}sI")
_pack, _pack_counts, _write_into = _COPY.pack, _COUNTS.pack, _WRITTEN.pack_into
_COPY_BYTES: Final = 128
_SLOT_BYTES: Final = 2 * _COPY_BYTES
_OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
_SOURCES: Final[tuple[UsageSource, ...]] = get_args(UsageSource)
_OUTCOME_PLACES: Final = {outcome: place for place, outcome in enumerate(_OUTCOMES)}
_SOURCE_PLACES: Final = {source: place for place, source in enumerate(_SOURCES)}
_OPEN: Final = bytes((_OUTCOME_PLACES["ok"], _SOURCE_PLACES["slot"], True))
"""What stands in place of an end before there is one."""

ZERO: Final[Counts] = (0, 0, 0, 0, 0, 0, 0, 0, 0)
_NOTHING: Final = _COUNTS.pack(*ZERO)


@dataclass(frozen=True, slots=True)
class Flight:
    """What a slot says of a request.

    Attributes:
        request_id: Whose slot it is.
        state: ADMITTED, DISPATCHED or ENDED.
        outcome: How it ended, where it did.
        source: Who counted.
        billed: Whether it is to be captured, where it ended.
        usage: What was delivered so far, in the order of `DIMENSIONS`.
    """

    request_id: str
    state: int
    outcome: Outcome
    source: UsageSource
    billed: bool
    usage: Counts


@dataclass(frozen=True, slots=True)
class Header:
    """Whose file it is."""

    worker: int
    slots: int
    incarnation: str
    boot_id: str


def boot_id() -> str:
    """Names this boot of the machine: page cache of another boot is gone, and with it the newest counts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


class Slot:
    """A request's place in the file, and what its writer knows of it."""

    __slots__ = ("id", "place", "serial")

    def __init__(self, place: int) -> None:
        self.place = place
        self.serial = 0
        self.id = b""


class FlightFile:
    """The writer's side.

    Args:
        path: Where files of this worker lie; the incarnation is added to the name.
        worker: The worker's number.
        slots: Requests in flight at most.

    Raises:
        OSError: The folder cannot be written or the disk is full: better now than as SIGBUS later.
    """

    def __init__(self, path: Path, worker: int, slots: int = SLOTS) -> None:
        self.incarnation = uuid.uuid4().hex
        self.path = path.with_name(f"{path.stem}-{self.incarnation}{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        size = _HEADER_BYTES + slots * _SLOT_BYTES
        unnamed = self.path.with_suffix(".new")
        # What a last life left, or one that died as it began; under our name, so that nobody else takes it.
        for left in (_spare(self.path), *path.parent.glob(f"{path.stem}-*.new")):
            with contextlib.suppress(FileNotFoundError):
                left.rename(unnamed)
                break
        self._fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, min(size, os.fstat(self._fd).st_size))
            allocate(self._fd, size)
            os.pwrite(self._fd, bytes(size), 0)
            header = _HEADER.pack(
                _MAGIC, worker & 0xFFFF, slots, self.incarnation.encode(), boot_id().encode()[:36]
            )
            os.pwrite(self._fd, header, 0)
            self._map = mmap.mmap(self._fd, size)
        except BaseException:
            os.close(self._fd)
            unnamed.unlink(missing_ok=True)
            raise
        unnamed.rename(self.path)
        self._slots = slots
        self._free = [Slot(place) for place in range(size - _SLOT_BYTES, 0, -_SLOT_BYTES)]

    def take(self, request_id: str) -> Slot | None:
        """A slot for a request that is about to be admitted; None when all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        slot.id = request_id.encode()
        self.write(slot, ADMITTED)
        return slot

    def write(self, slot: Slot, state: int, usage: Counts | None = None, end: bytes = _OPEN) -> None:
        """Say how a request stands. No system call."""
        serial = slot.serial = slot.serial + 1
        copy = _pack(serial, slot.id, state, end, _NOTHING if usage is None else _pack_counts(*usage))
        _write_into(self._map, slot.place + (serial & 1) * _COPY_BYTES, copy, crc32(copy))

    def end(self, slot: Slot, usage: Counts, outcome: Outcome, source: UsageSource, *, billed: bool) -> None:
        """Say how a request ended."""
        self.write(slot, ENDED, usage, bytes((_OUTCOME_PLACES[outcome], _SOURCE_PLACES[source], billed)))

    def free(self, slot: Slot) -> None:
        """The ledger has answered that the request has ended; the slot may be used again."""
        slot.id = b""
        self.write(slot, FREE)
        self._free.append(slot)

    def close(self) -> None:
        """Let go of the file: nothing is in flight any more, or the ledger is to recover what is."""
        if self._fd < 0:
            return
        self._map.close()
        if len(self._free) == self._slots:
            _retire(self._fd, self.path)
        os.close(self._fd)
        self._fd = -1


def _spare(path: Path) -> Path:
    """Where a worker finds the file of its last life, once that is over."""
    return path.with_name(f"{path.stem.rpartition('-')[0]}.spare")


def _retire(fd: int, path: Path) -> None:
    """Make a file its worker's spare; unlocked first, because whoever takes it locks it at once."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    with contextlib.suppress(FileNotFoundError):
        path.rename(_spare(path))


class DeadFile:
    """A flight file whose worker is surely dead, because its lock could be taken; locked until closed."""

    def __init__(self, path: Path, fd: int, header: Header) -> None:
        self.path = path
        self.header = header
        self._fd = fd

    def flights(self) -> Iterator[Flight]:
        """What was in flight: the newest sound copy of each slot that is not free."""
        for slot in range(self.header.slots):
            data = os.pread(self._fd, _SLOT_BYTES, _HEADER_BYTES + slot * _SLOT_BYTES)
            flight = _newest(data)
            if flight is not None:
                yield flight

    def retire(self) -> None:
        """Everything in it is on disk elsewhere: the file is its worker's spare now."""
        _retire(self._fd, self.path)

    def close(self) -> None:
        """Unlock."""
        os.close(self._fd)


def _newest(data: bytes) -> Flight | None:
    best: tuple[int, ...] | None = None
    found: Flight | None = None
    for start in (0, _COPY_BYTES):
        copy = data[start : start + _COPY.size]
        if len(copy) < _COPY.size:
            continue
        (check,) = _CHECK.unpack_from(data, start + _COPY.size)
        end: bytes
        serial, raw_id, state, end, counts = _COPY.unpack(copy)
        outcome, source, billed = end
        if not serial or crc32(copy) != check or (best is not None and serial < best[0]):
            continue
        best = (serial,)
        found = None
        if state in (ADMITTED, DISPATCHED, ENDED) and outcome < len(_OUTCOMES) and source < len(_SOURCES):
            request_id = raw_id.rstrip(b"\0").decode("ascii", "replace")
            usage: Counts = _COUNTS.unpack(counts)
            found = Flight(request_id, state, _OUTCOMES[outcome], _SOURCES[source], bool(billed), usage)
    return found


def dead_files(folder: Path, worker_files: str = "*.flight") -> Iterator[DeadFile]:
    """Every flight file in a folder whose lock nobody holds; each is closed when the next is asked for.

    Raises:
        OSError: One cannot be read: after all others.
    """
    failed: OSError | None = None
    for path in sorted(folder.glob(worker_files)):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed = error
            continue
        with contextlib.ExitStack() as stack:
            dead = stack.enter_context(contextlib.closing(_Descriptor(fd)))
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            try:
                header = _read_header(fd)
            except OSError as error:
                failed = error
                continue
            if header is None:
                path.unlink(missing_ok=True)
                continue
            yield DeadFile(path, dead.keep(), header)
    if failed is not None:
        raise failed


class _Descriptor:
    """Closes a descriptor whatever happens while a file is being looked at."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def keep(self) -> int:
        """The descriptor."""
        return self._fd

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


def _read_header(fd: int) -> Header | None:
    data = os.pread(fd, _HEADER.size, 0)
    if len(data) < _HEADER.size:
        return None
    magic, worker, slots, incarnation, boot = _HEADER.unpack(data)
    if magic != _MAGIC:
        return None
    return Header(
        worker, slots, incarnation.decode("ascii", "replace"), boot.rstrip(b"\0").decode("ascii", "replace")
    )

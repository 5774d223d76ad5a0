"""Taking a data folder for one supervisor, and the secrets that lie in it. May import settings and layout."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from random import SystemRandom
from typing import Final

from headgate_gateway.domain.keys import generate_key
from headgate_gateway.layout import Layout
from headgate_gateway.settings import ADMIN_KEY_VARIABLE, Settings, admin_key, database, shown_database

LOCK_PATIENCE_S: Final = 15.0
"""How long to wait for the ledger of a predecessor that was killed, which ends by itself."""


class AlreadyServed(Exception):
    """Another supervisor lives on this data folder."""


class DataFolderError(Exception):
    """The data folder cannot be used; the message says why."""


class DataFolder:
    """A data folder that this process has taken: its lock is held until `release`.

    Attributes:
        was_killed: Whether the previous supervisor ended without releasing it. Its children may still be ending.
    """

    def __init__(self, layout: Layout, lock_fd: int, *, was_killed: bool) -> None:
        self.layout = layout
        self.was_killed = was_killed
        self._locks = [lock_fd]

    @classmethod
    def take(cls, layout: Layout) -> DataFolder:
        """Take it; `prepare` it next.

        Raises:
            AlreadyServed: Another supervisor has it; the message tells its process id.
            DataFolderError: It cannot be written.
        """
        try:
            layout.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock_fd = os.open(layout.pid, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataFolderError(f"server.data_dir: {error}") from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "?"
            os.close(lock_fd)
            raise AlreadyServed(f"{layout.data_dir} is served already, by process {pid}") from None
        was_killed = bool(os.pread(lock_fd, 1, 0))
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        return cls(layout, lock_fd, was_killed=was_killed)

    async def prepare(self, patience_s: float = LOCK_PATIENCE_S) -> None:
        """Wait until no other ledger holds the store, then make a fresh run folder.

        Another ledger can be one of a killed predecessor, which ends by itself, or one that a command started.

        Raises:
            DataFolderError: It still does after `patience_s` seconds, or the run folder is another user's.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while _is_locked(self.layout.lock):
            if loop.time() > deadline:
                raise DataFolderError(f"another ledger holds {self.layout.lock}")
            await asyncio.sleep(0.05)
        _make_run_folder(self.layout)
        # What cleans temporary folders of what is days old (systemd-tmpfiles) leaves one alone that is locked.
        run_fd = os.open(self.layout.run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._locks.append(run_fd)
        fcntl.flock(run_fd, fcntl.LOCK_SH)

    def release(self) -> None:
        """Give it back. The file stays: removing a file that is locked would let two processes lock two files."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._locks[0], 0)
        for fd in self._locks:
            os.close(fd)


def serving_pid(layout: Layout) -> int | None:
    """The supervisor that lives on a data folder, or None."""
    if not _is_locked(layout.pid):
        return None
    try:
        return int(layout.pid.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def served_out_of_reach(layout: Layout) -> str:
    """What to add to the news that nobody answers, when somebody serves all the same; else nothing."""
    pid = serving_pid(layout)
    if pid is None or layout.run_dir.exists():
        return ""
    return f"; process {pid} serves {layout.data_dir}, but with another TMPDIR than {layout.run_dir.parents[1]}"


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _make_run_folder(layout: Layout) -> None:
    """Sockets lie under the temporary folder, where anybody could have made a folder of that name first."""
    mine = layout.run_dir.parent
    mine.mkdir(mode=0o700, exist_ok=True)
    found = mine.lstat()
    if found.st_uid != os.getuid() or mine.is_symlink():
        raise DataFolderError(f"{mine} belongs to another user; remove it or set TMPDIR")
    mine.chmod(0o700)
    shutil.rmtree(layout.run_dir, ignore_errors=True)
    layout.run_dir.mkdir(mode=0o700)
    layout.metrics.mkdir(mode=0o700)


def ensure_secrets(settings: Settings) -> None:
    """Make the pepper and the admin key where they are missing; both mode 0600, whole or not there at all.

    Raises:
        DataFolderError: The store exists but its pepper does not: a new one would make every key invalid. Or
            whether it exists cannot be asked.
    """
    layout = settings.layout
    layout.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    reference = settings.server.pepper or f"file:{layout.pepper}"
    if reference.startswith("file:"):
        pepper = Path(reference.removeprefix("file:"))
        if not pepper.exists():
            if (lost := _lost_pepper(settings)) is not None:
                raise DataFolderError(f"{pepper} is missing, but {lost}")
            _write_once(pepper, secrets.token_hex(32))
    if admin_key(layout) is None:
        _write_once(layout.admin_key, generate_key(SystemRandom()))


def _lost_pepper(settings: Settings) -> str | None:
    """What store was made with a pepper, and what to do, for people; None when it is still without."""
    if (url := database(settings)) is None:
        store = settings.layout.store
        return f"{store} was made with it; restore it" if store.exists() else None
    import psycopg

    from headgate_gateway.ledger.postgres import pepper, schema
    from headgate_gateway.ledger.postgres.session import connect
    from headgate_gateway.ledger.store.contract import StoreFailed

    try:
        with contextlib.closing(connect(url)) as db:
            schema.check(db)
            if pepper.noted(db) is None:
                return None
            return f"{shown_database(settings)} was made with one; copy it from another node"
    except (StoreFailed, psycopg.Error) as error:
        raise DataFolderError(f"store.url: {str(error).strip()}") from None


def admin_key_place(layout: Layout) -> str:
    """Where the admin key lies, for people."""
    return str(layout.admin_key) if layout.admin_key.exists() else f"${ADMIN_KEY_VARIABLE}"


def _write_once(path: Path, text: str) -> None:
    """Write a secret that is not there yet. Two processes doing so at once end up with the same one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()

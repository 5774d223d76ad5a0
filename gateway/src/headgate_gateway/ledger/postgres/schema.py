"""The schema on PostgreSQL: which one a database has, whether this program can serve it, and how it is migrated.

The tables themselves are Alembic revisions, in `migrations`. They hold the same facts as SQLite's, with three
differences. What an account has in force and in use lies packed in one `counters` row, so that a batch reads and
writes one row per account. Rows of history carry the `chain` that they belong to: each lane of each node is a
writer of its own, with its own numbers. `organizations` are what a batch locks: every other row that it changes
belongs to one of them. There are no foreign keys on what requests write: each would lock a shared parent row on
every insert.

A revision's `phase` is `expand` when programs of before can go on with what it leaves, else `contract`. So nodes
are updated without a stop: expand the database, replace the nodes one by one, contract it. May import the store's
contract.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from headgate_gateway.ledger.store.contract import StoreFailed

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

OLDEST: Final = "0005"
"""The first revision that has all that this program needs."""

HEAD: Final = "0006"
"""The last revision that this program knows."""

APPEND_ONLY: Final = ("usage_records", "voids", "prices", "limits", "audit_log", "seals", "archives", "links")
"""Tables on which triggers forbid UPDATE, TRUNCATE, and DELETE of all that no row of `archives` covers."""

ADMIN_LOCK: Final = (0x48_47, 0)
"""Advisory lock of administrative commands and migrations: one at a time over all nodes."""

PRICE_LOCK: Final = (0x48_47, 1)
"""Advisory lock of prices: shared by batches, exclusive for who makes a version, so that none is admitted at a
time at which a version was in force that its batch could not see."""

SEAL_LOCK: Final = (0x48_47, 2)
"""Advisory lock of who makes a seal: one at a time over all nodes."""

SWEEP_LOCK: Final = (0x48_47, 3)
"""Advisory lock of who deletes what was archived: one at a time over all nodes."""

NODE_LOCK: Final = 0x48_48
"""Advisory locks of nodes, by number: shared by their batches, exclusive for who fences them."""

POSITION_FROM: Final = "SELECT position_from FROM deployment"
"""What transaction ids are counted from, where records are put in order by them."""

_BEHIND: Final = """
    SELECT position_from + ids <= top, (top / 256 + 1) * 256 - ids
    FROM deployment, (SELECT coalesce(max(position), 0) AS top FROM usage_records) AS records,
        (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint * 256 AS ids) AS here
"""
"""Whether the next records would come before those that there are, and from what to count so that they do not."""

CONNECT_S: Final = 5
_BOUNDS: Final = "-c lock_timeout=10s -c client_encoding=UTF8"
"""A migration that waits for a table's lock makes all who come after it wait, too."""


class WrongSchema(StoreFailed):
    """The database's schema is not one that this program can serve; the message says what to do."""


@dataclass(frozen=True)
class Migrated:
    """What a migration did.

    Attributes:
        before: The revision that the database had, None for an empty one.
        after: The one it has now.
        waiting: Revisions that wait for `--contract`, or stand behind one that does.
    """

    before: str | None
    after: str | None
    waiting: tuple[str, ...]


def check(db: psycopg.Connection) -> None:
    """Refuse a database that this program cannot serve.

    Raises:
        WrongSchema: It lacks something, or has let go of something that this program needs.
    """
    found = revision(db)
    if found is None:
        raise WrongSchema("the database has no schema of headgate yet: run `headgate migrate`")
    if found < OLDEST:
        raise WrongSchema(
            f"the database has schema {found}, this program needs {OLDEST} or later: run `headgate migrate`"
        )
    (contracted,) = db.execute("SELECT contracted FROM deployment").fetchone() or (found,)
    if contracted > HEAD:
        raise WrongSchema(
            f"the database is for programs that know schema {contracted}, this one knows up to {HEAD}: "
            "update headgate (`headgate migrate` never goes back)"
        )


def check_order(db: psycopg.Connection) -> None:
    """Refuse a database whose next records would not come after those that there are.

    Records are put in order by transaction ids, which begin anew where a dump is restored.

    Raises:
        WrongSchema: It is one.
    """
    behind, _ = db.execute(_BEHIND).fetchone() or (False, 0)
    if behind:
        raise WrongSchema("the database was restored from a dump: run `headgate migrate` before nodes serve it")


def revision(db: psycopg.Connection) -> str | None:
    """The revision that a database has, None for none."""
    if db.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        return None
    row = db.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def migrate(url: str, *, contract: bool = False, revisions: Path | None = None) -> Migrated:
    """Bring a database's schema forward; nodes that serve it meanwhile go on.

    Args:
        url: The database.
        contract: Also let go of what only programs of before need; every node must have been replaced.
        revisions: Where the revisions lie, if not in this package.

    Raises:
        WrongSchema: The database is newer than this program.
        psycopg.Error: It cannot be reached, or refuses.
    """
    with _alembic(revisions) as (config, script), _engine(url) as connection:
        db: psycopg.Connection = connection.connection.driver_connection
        db.execute("SELECT pg_advisory_xact_lock(%s, %s)", ADMIN_LOCK)
        before = revision(db)
        known = [step.revision for step in script.walk_revisions()][::-1]
        if before is not None and before not in known:
            check(db)  # another release went ahead, which this one can serve or cannot
            return Migrated(before, before, ())
        pending = known[known.index(before) + 1 :] if before is not None else known
        phases = {step: script.get_revision(step).module.phase for step in pending}
        contracting = [step for step in pending if phases[step] == "contract"]
        contract = contract or before is None  # there are no programs of before
        taken = pending if contract else [step for step in pending if not contracting or step < contracting[0]]
        if taken:
            from alembic import command

            config.attributes["connection"] = connection
            command.upgrade(config, taken[-1])
            if contract and contracting:
                db.execute("UPDATE deployment SET contracted = %s", (contracting[-1],))
        behind, start = db.execute(_BEHIND).fetchone() or (False, 0)
        if behind:
            db.execute("UPDATE deployment SET position_from = %s", (start,))
        return Migrated(before, taken[-1] if taken else before, tuple(pending[len(taken) :]))


@contextlib.contextmanager
def _alembic(revisions: Path | None) -> Generator[tuple[Config, ScriptDirectory]]:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    with resources.as_file(resources.files("headgate_gateway.ledger") / "migrations") as folder:
        config = Config()
        for option, value in (
            ("script_location", folder),
            ("version_locations", revisions or folder.parent / "postgres" / "migrations"),
            ("path_separator", "newline"),
        ):
            config.set_main_option(option, str(value).replace("%", "%%"))
        yield config, ScriptDirectory.from_config(config)


@contextlib.contextmanager
def _engine(url: str) -> Generator[Any]:
    """A transaction as Alembic wants it; SQLAlchemy never sees the address, libpq reads all its forms."""
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError

    def connect() -> psycopg.Connection:
        return psycopg.connect(url, connect_timeout=CONNECT_S, application_name="headgate", options=_BOUNDS)

    engine = sa.create_engine("postgresql+psycopg://", creator=connect, poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise error.orig or error from None
    finally:
        engine.dispose()

"""What `headgate doctor` looks at where the store is PostgreSQL. May import settings and the ledger."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from headgate_gateway.cli.diagnosis import Finding
from headgate_gateway.settings import SecretError, Settings, database, pepper, shown_database

if TYPE_CHECKING:
    import psycopg

OLDEST_SERVER: Final = 130000
"""PostgreSQL 13: transaction ids of 64 bits."""

SLOW_TRIP_MS: Final = 5.0
TRIPS: Final = 25
SAFE: Final = ("fsync", "full_page_writes")
"""Settings without which a database can lose what it said was committed."""


def examine_database(settings: Settings) -> Iterator[Finding]:
    """Whether the database answers, is safe, near, migrated, and made with this node's pepper."""
    import psycopg

    from headgate_gateway.ledger.chain import chain_key
    from headgate_gateway.ledger.postgres import pepper as peppers
    from headgate_gateway.ledger.postgres import schema
    from headgate_gateway.ledger.postgres.session import connect
    from headgate_gateway.ledger.store.contract import StoreFailed

    try:
        url, place = database(settings), shown_database(settings)
        assert url is not None
        db = connect(url)
    except (SecretError, StoreFailed) as error:
        yield Finding("database", False, str(error), "start it, or change store.url")
        return
    with contextlib.closing(db):
        yield from _server(db, place)
        try:
            schema.check(db)
            schema.check_order(db)
        except psycopg.Error as error:
            yield Finding("schema", False, str(error).strip(), f"grant user {db.info.user} the rights on it")
            return
        except StoreFailed as error:
            yield Finding("schema", False, str(error), "headgate migrate")
            return
        yield Finding("schema", True, schema.revision(db) or "")
        try:
            peppers.check(db, chain_key(pepper(settings)))
        except SecretError as error:
            fresh = peppers.noted(db) is None
            yield Finding("pepper", fresh, "will be made" if fresh else str(error), "" if fresh else _COPY)
        except StoreFailed as error:
            yield Finding("pepper", False, str(error), _COPY)
        else:
            yield Finding("pepper", True, "the same as every node's")


_COPY: Final = "copy it from another node, and name it in server.pepper"


def _server(db: psycopg.Connection, place: str) -> Iterator[Finding]:
    number = db.info.server_version
    told = f"{place}, version {number // 10000}.{number % 10000}"
    ok = number >= OLDEST_SERVER
    yield Finding("database", ok, told, "" if ok else "use PostgreSQL 13 or newer")
    (standby,) = db.execute("SELECT pg_is_in_recovery()").fetchone() or (False,)
    if standby:
        yield Finding("database role", False, "a standby, which takes no writes", "name the primary in store.url")
    off = [name for name in SAFE if db.execute("SELECT current_setting(%s)", (name,)).fetchone() == ("off",)]
    yield Finding(
        "database safety", not off, f"{' and '.join(off)} off" if off else f"{' and '.join(SAFE)} on",
        "switch them on: a power cut would lose charges" if off else "",
    )  # fmt: skip
    took: list[float] = []
    for _ in range(TRIPS):
        start = time.perf_counter()
        db.execute("SELECT 1")
        took.append(time.perf_counter() - start)
    trip_ms = statistics.median(took) * 1000
    near = trip_ms <= SLOW_TRIP_MS
    fix = "" if near else "each batch makes two round trips: put nodes nearer to the database"
    yield Finding("database distance", near, f"{trip_ms:.2f} ms there and back (median of {TRIPS})", fix)

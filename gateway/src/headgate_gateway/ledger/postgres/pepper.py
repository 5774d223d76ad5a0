"""The pepper that all nodes of one database share, of which the database remembers a digest.

May import the store's contract.

A node with another pepper would know none of the keys, and nobody could verify both its chains and the others'.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import psycopg

from headgate_gateway.ledger.store.contract import StoreFailed

_CONTEXT: Final = b"headgate deployment"


class WrongPepper(StoreFailed):
    """This node's pepper is not the one that the database's keys and chains were made with."""


def recognise(db: psycopg.Connection, key: bytes) -> None:
    """Note the pepper of the first node; refuse every other one from then on.

    Args:
        db: A migrated database, in autocommit.
        key: The chains' key, see `chain.chain_key`.

    Raises:
        WrongPepper: The database was made with another.
    """
    db.execute("UPDATE deployment SET pepper = %s WHERE pepper IS NULL", (_digest(key),))
    check(db, key)


def check(db: psycopg.Connection, key: bytes) -> None:
    """Refuse another pepper than the noted one.

    Raises:
        WrongPepper: The database was made with another.
    """
    if noted(db) not in (None, _digest(key)):
        raise WrongPepper(
            "server.pepper is not the one that this database's keys and history were made with: "
            "give every node the same"
        )


def _digest(key: bytes) -> bytes:
    return hmac.digest(key, _CONTEXT, hashlib.sha256)


def noted(db: psycopg.Connection) -> bytes | None:
    """The digest of the pepper; None while no node has ever joined."""
    row = db.execute("SELECT pepper FROM deployment").fetchone()
    return None if row is None else row[0]

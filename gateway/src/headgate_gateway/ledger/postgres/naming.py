"""Which accounts an administrative command is about: names and ids become what its slice must have.

May import commands, slices and psycopg. Accounts are never deleted and never renamed, so what was found before
the locks still holds under them; what was not found may have been made meanwhile, and then the store refuses a
second one of the name and the command runs again.
"""

from __future__ import annotations

from typing import Final

import psycopg

from headgate_gateway.domain import commands as c
from headgate_gateway.ledger.postgres.slices import Directory, Wanted

PAGE: Final = 1000

_NAMED: Final = "SELECT id, kind FROM accounts WHERE id = %s OR (name = %s AND kind <> 'key')"
_HOLDER: Final = "SELECT id, 'key' FROM api_keys WHERE digest = %s"


def named(db: psycopg.Connection, command: c.WireCommand, directory: Directory) -> Wanted:
    """What the rules need to see to carry a command out."""
    wanted = Wanted(prices=isinstance(command, c.SetPrice | c.CancelPrice | c.SyncPrices | c.Rotate))
    if isinstance(command, c.Create):
        _for_creation(db, command, wanted)
    elif isinstance(command, c.CreateAccount):
        for name in {command.name, command.organization}:
            _add(wanted, db.execute(_NAMED, (name, name)).fetchall())
    elif isinstance(command, c.ListKeys):
        wanted.keys.update(_page_of_keys(db, command))
    elif isinstance(command, c.ListAccounts):
        limit = max(1, min(command.limit, PAGE)) + 1
        found = db.execute(
            'SELECT id FROM accounts WHERE id COLLATE "C" > %s ORDER BY id COLLATE "C" LIMIT %s',
            (command.after, limit),
        )
        wanted.accounts.update(id_ for (id_,) in found)
    else:
        for name in {getattr(command, field, "") for field in ("account", "scope", "id", "successor")} - {""}:
            _add(wanted, db.execute(_NAMED, (name, name)).fetchall())
        if isinstance(command, c.Rotate):
            _add(wanted, db.execute(_HOLDER, (command.digest,)).fetchall())
    directory.learn(db, (*wanted.keys, *wanted.accounts))
    return wanted


def _for_creation(db: psycopg.Connection, command: c.Create, wanted: Wanted) -> None:
    _add(wanted, db.execute(_HOLDER, (command.digest,)).fetchall())
    _add(wanted, db.execute(_NAMED, (command.id, command.id)).fetchall())
    above = db.execute(
        "SELECT id FROM accounts WHERE kind = 'organization' AND (id = %s OR name = %s)",
        (command.organization, command.organization),
    ).fetchall()
    wanted.accounts.update(id_ for (id_,) in above)
    found = db.execute(
        "SELECT id FROM accounts WHERE kind = 'project' AND (id = %s OR name = %s)",
        (command.project, command.project),
    )
    wanted.accounts.update(id_ for (id_,) in found)


def _page_of_keys(db: psycopg.Connection, command: c.ListKeys) -> list[str]:
    limit = max(1, min(command.limit, PAGE)) + 1
    found = db.execute(
        "SELECT k.id FROM accounts k JOIN accounts p ON p.id = k.parent WHERE k.kind = 'key' "
        'AND k.id COLLATE "C" > %s AND (%s::text IS NULL OR p.id = %s OR p.name = %s) '
        'ORDER BY k.id COLLATE "C" LIMIT %s',
        (command.after, command.project, command.project, command.project, limit),
    )
    return [id_ for (id_,) in found]


def _add(wanted: Wanted, found: list[tuple[str, str]]) -> None:
    for id_, kind in found:
        wanted.accounts.add(id_)
        if kind == "key":
            wanted.keys.add(id_)

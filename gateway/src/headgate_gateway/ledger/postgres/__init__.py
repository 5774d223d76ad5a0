"""The ledger on PostgreSQL, shared by many nodes: the same rules, run on slices that are loaded under locks.

`core` runs operations, `lane` is one transaction after another, `slices` reads what a batch needs, `writing`
writes what it changed, `audit` re-derives it. May import the ledger's own modules and psycopg (extra
`postgres`).

Not wired to `[store] url` yet: `headgate check` refuses such a URL. The core answers the same operations exactly
as the one on SQLite does.
"""

"""The ledger on PostgreSQL, shared by many nodes: the same rules, run on slices that are loaded under locks.

`server` serves a node's socket, with a queue for each lane; `core` runs operations, `lane` is one transaction
after another, `slices` reads what a batch needs, `writing` writes what it changed, `reading` answers what needs
no lock, `audit` re-derives it all. May import the ledger's own modules and psycopg (extra `postgres`).

The core answers the same operations exactly as the one on SQLite does.
"""

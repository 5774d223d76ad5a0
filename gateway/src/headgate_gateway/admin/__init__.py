"""Use cases on accounts, keys, budgets, prices, credits and usage, for http and cli.

May import domain and the ledger's client; read-only SQL of usage queries lives here.
"""

"""The ledger: the process that owns the store, and its client.

May import domain and the engine's ipc.
"""

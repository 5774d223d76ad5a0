"""Where the ledger's facts lie. One contract, a module for each database.

May import domain, book and rows. SQL lives here and nowhere else in the ledger.
"""

from headgate_gateway.ledger.store.contract import (
    Store,
    StoreBroken,
    StoreFailed,
    StoreRefused,
)

__all__ = ["Store", "StoreBroken", "StoreFailed", "StoreRefused"]

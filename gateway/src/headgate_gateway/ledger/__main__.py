"""`python -m headgate_gateway.ledger`: the process that owns the store."""

import sys

from headgate_gateway.ledger.process import main

if __name__ == "__main__":
    sys.exit(main())

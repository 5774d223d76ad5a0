"""`python -m headgate_gateway.cli` is `headgate`."""

from headgate_gateway.cli import main

main()

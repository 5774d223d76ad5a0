"""`python -m headgate_gateway.outbox`."""

from headgate_gateway.outbox.process import main

if __name__ == "__main__":
    raise SystemExit(main())

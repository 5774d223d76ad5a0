"""The Headgate client: typed, sync and async, with retries, cost and budgets."""

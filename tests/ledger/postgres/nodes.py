"""Several nodes on one database, as tests of what they share begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headgate_gateway.domain import commands as c

NewBench = Callable[..., Any]


def two_nodes(new_postgres_bench: NewBench) -> tuple[list[Any], str]:
    """Two nodes and a key with budgets and credit."""
    benches = [new_postgres_bench(name, seed=n) for n, name in enumerate("ab")]
    benches[0].price(input="0.0002", output="0.0015")
    key = benches[0].key("0.5/day", rpm=10_000)
    benches[1].do(c.SetBudget(account="p", amount="0.5", window="month"))
    benches[0].do(c.GrantCredit(account="default", amount="0.4"))
    return benches, key

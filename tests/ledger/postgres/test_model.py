"""The same random lives as SQLite's ledger has, against the same reference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from tests.ledger.test_model import agree


def test_the_ledger_and_the_reference_agree(new_postgres_bench: Callable[..., Any], postgres_server: Any) -> None:
    numbers = count()
    agree(lambda: new_postgres_bench(f"node{next(numbers)}", url=postgres_server.database()), examples=6)

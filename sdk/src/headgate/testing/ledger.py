"""The fake gateway's ledger: what requests cost, one record each, one budget over all. Pure; whole nano-units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headgate._core.money import amount, format_nano
from headgate.testing.clock import FakeClock
from headgate.testing.models import FakeModel

_RATE = 1_000_000


class FakeLedger:
    """Bills and remembers.

    Attributes:
        records: A mapping per billed request, the oldest first.
    """

    def __init__(self, clock: FakeClock, budget: object) -> None:
        self.records: list[dict[str, Any]] = []
        self._clock = clock
        self._budget = None if budget is None else amount(budget, "budget")

    @property
    def spent(self) -> int:
        """Nano-units billed so far."""
        return sum(record["nano"] for record in self.records)

    def price(self, model: FakeModel, tokens_in: int, tokens_out: int) -> int:
        """What a request costs, rounded up."""
        rates = {name: amount(value, name) for name, value in model.price.items()}
        tokens = tokens_in * rates.get("input", 0) + tokens_out * rates.get("output", 0)
        return max(rates.get("minimum", 0), rates.get("request", 0) + -(-tokens // _RATE))

    def refusal(self, nano: int) -> tuple[str, dict[str, Any]] | None:
        """Code and members of the problem, where the budget has no room for so much."""
        budget, spent = self._budget, self.spent
        if budget is None or spent + nano <= budget:
            return None
        return "budget_exhausted" if spent >= budget else "request_exceeds_budget", {
            "scope": "key",
            "limit": format_nano(budget),
            "spent": format_nano(spent),
            "held": "0",
            "resets_at": None,
            "largest_max_tokens": max(0, (budget - spent) // max(1, nano)),
        }

    def bill(
        self, request_id: str, model: str, tokens_in: int, tokens_out: int, nano: int, tags: Mapping[str, str]
    ) -> None:
        """Write a record."""
        self.records.append(
            {
                "request_id": request_id,
                "model": model,
                "usage": {"input": tokens_in, "output": tokens_out},
                "cost": format_nano(nano),
                "nano": nano,
                "outcome": "ok",
                "tags": tags,
                "created_at": self._clock.utc().isoformat(),
            }
        )

    def record(self, request_id: str) -> dict[str, Any] | None:
        """The record of a request."""
        return next((record for record in self.records if record["request_id"] == request_id), None)

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of records, or totals when `group_by` is asked."""
        since, until = query.get("since"), query.get("until")
        rows = [
            record
            for record in self.records
            if (since is None or record["created_at"] >= since)
            and (until is None or record["created_at"] < until)
            and query.get("model") in {None, record["model"]}
        ]
        if (asked := query.get("group_by")) is not None:
            return {"data": _totals(rows, asked.split(",")), "has_more": False}
        start = 0
        if (after := query.get("after")) is not None:
            start = next((at + 1 for at, row in enumerate(rows) if row["request_id"] == after), len(rows))
        size = int(query.get("limit", "100"))
        page = [{name: row[name] for name in row if name != "nano"} for row in rows[start : start + size]]
        more = start + size < len(rows)
        return {"data": page, "has_more": more, "after": page[-1]["request_id"] if more and page else None}


def _totals(rows: list[dict[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        entry = sums.setdefault(tuple(str(row.get(group, "")) for group in groups), [0, 0])
        entry[0] += 1
        entry[1] += row["nano"]
    return [
        {**dict(zip(groups, names, strict=True)), "requests": count, "cost": format_nano(nano)}
        for names, (count, nano) in sorted(sums.items())
    ]

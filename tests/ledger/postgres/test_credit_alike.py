"""Credit, tiers and rotation: both stores answer the same, also after a restart, and both audits agree."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.domain import keys
from headgate_gateway.ledger import credit, wire

PEPPER = b"p" * 32
HOUR = 3600 * 1_000_000
TERMS = (
    {"output": "0.001"},
    {"output": "0.001", "minimum": "0.000000004"},
    {"input": "0.001", "output": "0.001", "context": ({"above": 5, "input": "0.002", "output": "0.003"},)},
)


class Spender:
    """Grants, adjustments, rotations and requests that draw on credit, the same for every ledger."""

    def __init__(self, seed: int, now_us: int) -> None:
        self.dice = random.Random(seed)
        self.now_us = now_us
        self.keys = ["key_0"]
        self.open: list[str] = []
        self.n = 0

    def command(self) -> Any:
        dice = self.dice
        self.n += 1
        what = dice.random()
        if what < 0.1:
            self.keys.append(f"key_{self.n}")
            return c.Rotate(
                id=dice.choice(self.keys[:-1]), successor=f"key_{self.n}",
                digest=keys.digest(str(self.n), PEPPER),
                prefix="hg_", overlap_s=dice.choice([0, 1800, 7200]),
            )  # fmt: skip
        if what < 0.2:
            return c.SetPrice(model="m", rates=dice.choice(TERMS), scope=dice.choice(["", self.keys[-1]]))
        amount = dice.randrange(1, 60)
        return c.GrantCredit(
            account=dice.choice(["default", "default", "p", self.keys[-1]]),
            amount=f"{'-' if dice.random() < 0.25 else ''}0.{amount:09d}", priority=dice.randrange(3),
            expires_at=dice.choice([None, self.now_us + HOUR, self.now_us + 3 * HOUR]),
        )  # fmt: skip

    def operation(self) -> Any:
        dice = self.dice
        self.n += 1
        if not self.open or dice.random() < 0.5:
            return wire.Admit(
                1, f"req_{self.n:05d}", dice.choice(self.keys[-2:]), "m", "chat",
                (dice.randrange(9), 0, 0, 0, 0, 0, 0, 1, 0), 1, dice.choice([dice.randrange(1, 40), 3000]),
                dice.random() < 0.4, 2**62,
            )  # fmt: skip
        request_id = dice.choice(self.open)
        if dice.random() < 0.3:
            return wire.Extend(1, request_id, dice.randrange(3000))
        self.open.remove(request_id)
        if dice.random() < 0.2:
            return wire.Void(1, request_id)
        usage = (dice.randrange(9), 0, 0, dice.randrange(60), 0, 0, 0, 1, 0)
        return wire.Settle(1, request_id, usage, "upstream", "ok", "echo", billed=dice.random() < 0.9)


@pytest.mark.parametrize("seed", range(3))
def test_both_stores_spend_credit_alike(
    seed: int, new_bench: Callable[..., Any], new_postgres_bench: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(credit, "MOST_USED_UP", 2)
    benches = (new_bench("sqlite"), new_postgres_bench())
    spender = Spender(seed, benches[0].clock.us)
    first = c.Create(id="key_0", digest=keys.digest("0", PEPPER), prefix="hg_", project="p")
    for bench in benches:
        bench.price()
        bench.do(first)
    told: set[str] = set()
    for turn in range(120):
        dice = spender.dice
        command = dice.random() < 0.25
        batch = (
            [wire.Run(1, spender.command(), "test")]
            if command
            else [spender.operation() for _ in range(dice.randrange(1, 6))]
        )
        expected, got = (msgspec.to_builtins(bench.run(*batch)) for bench in benches)
        for facts in (expected, got):
            for made in facts if command else ():  # ids that each ledger makes for itself
                if isinstance(made, list) and isinstance(made[-1], dict) and "versions" in made[-1]:
                    made[-1]["versions"] = [v | {"id": ""} for v in made[-1]["versions"]]
        assert got == expected, (turn, batch)
        for reply in benches[0].core.state.holds:
            if reply not in spender.open:
                spender.open.append(reply)
        spender.open = [who for who in spender.open if who in benches[0].core.state.holds]
        told.update(type(op).__name__ for op in batch)
        shown = [msgspec.to_builtins(bench.do(c.ListAccounts(limit=1000))) for bench in benches]
        assert _without_ids(shown[0]) == _without_ids(shown[1])
        step = dice.choice([0, 1, HOUR // 3])
        for bench in benches:
            bench.clock.us += step
            if turn % 40 == 39:
                bench.restart()
        spender.now_us += step
    assert told >= {"Admit", "Extend", "Settle", "Void", "Run"}
    for bench in benches:
        report = bench.audit()
        assert report.ok, report.first_difference
    benches[0].core.close()


def _without_ids(page: dict[str, Any]) -> list[Any]:
    return sorted(
        (account["kind"], account["name"], account["in_flight"], repr(account["budgets"]))
        for account in page["accounts"]
    )

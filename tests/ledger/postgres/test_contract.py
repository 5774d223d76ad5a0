"""One contract: whatever is asked of it, a ledger on PostgreSQL answers what one on SQLite answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.domain import keys
from headgate_gateway.domain.budgets import WindowKind
from headgate_gateway.domain.erasing import ErasePersonal
from headgate_gateway.ledger import wire

PEPPER = b"p" * 32
NEVER = 2**62
WINDOWS: tuple[WindowKind, ...] = ("total", "hour", "day", "week", "month")


class Script:
    """Random operations, the same for every ledger that follows it."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._keys: list[str] = []
        self._open: list[str] = []
        self._n = 0
        self.now_us = 0

    def batch(self) -> list[Any]:
        dice = self._dice
        if not self._keys or dice.random() < 0.15:
            return [wire.Run(1, self._command(), "test")]
        return [self._operation() for _ in range(dice.randrange(1, 12))]

    def saw(self, replies: list[Any]) -> None:
        """Learn what was granted, so that most of what follows is about open requests."""
        self._open += [reply.request_id for reply in replies if isinstance(reply, wire.Grant)]

    def _command(self) -> Any:
        dice = self._dice
        if len(self._keys) < 3 or dice.random() < 0.2:
            return self._create()
        account = dice.choice([*self._keys, "default", "other", "p0", "p1", "nobody"])
        amount = f"0.{dice.randrange(20_000):09d}"
        return dice.choice(
            [
                c.SetBudget(
                    account=account, amount=amount, window=dice.choice(WINDOWS), hard=dice.random() < 0.8
                ),
                c.SetBudget(account=account, amount=None, window=dice.choice(WINDOWS)),
                c.SetLimit(account=account, kind="requests", amount=dice.choice([None, 3, 50])),
                c.SetLimit(account=account, kind="tokens", amount=dice.choice([None, 1000, 100_000])),
                c.SetLimit(account=account, kind="concurrency", amount=dice.choice([None, 2, 20])),
                c.GrantCredit(account=account, amount=amount),
                c.GrantCredit(
                    account=account,
                    amount=dice.choice(["", "-"]) + amount,
                    priority=dice.randrange(4),
                    expires_at=dice.choice([None, self.now_us + dice.randrange(10**11)]),
                ),
                c.Rotate(
                    id=dice.choice(self._keys),
                    successor=f"key_r{self._n}",
                    digest=keys.digest(f"r{self._n}", PEPPER),
                    prefix="hg_",
                    overlap_s=dice.choice([0, 4000]),
                ),
                c.SetPrice(model=dice.choice("mn"), rates={"output": "0.001", "input": "0.0005"}),
                c.SetPrice(model="m", rates={"output": "0.0007"}, scope=dice.choice(self._keys)),
                c.SetPrice(model="n", rates=None),
                c.SetPrice(
                    model="m",
                    rates=dice.choice([None, {"output": "0.003"}, {"margin": "10"}]),
                    scope=dice.choice(["", "default", *self._keys]),
                    effective_from=self.now_us + dice.randrange(-(10**9), 10**10),
                ),
                c.ListPrices(history=dice.random() < 0.5),
                c.CreateAccount(
                    name=dice.choice(["p0", "p9", ""]), organization=dice.choice(["default", "third"])
                ),
                c.CreateAccount(name=dice.choice(["default", "fourth"]), kind="organization"),
                c.SetPrice(
                    model="n",
                    rates={
                        "output": "0.001",
                        "minimum": "0.0000001",
                        "graduated": ({"above": 100, "output": "0.0004"},),
                    },
                ),
                c.SyncPrices(models={"m": {"output": dice.choice(["0.001", "0.002"])}}),
                c.RevokeKey(id=dice.choice([*self._keys, "key_none", "key_none"]))
                if dice.random() < 0.3
                else c.SetLimit(account=account, kind="requests", amount=40),
                ErasePersonal(
                    requests=tuple((self.now_us, f"req_{n:05d}") for n in range(self._n - 9, self._n + 1)),
                    tags=dice.choice([(), ("team",)]),
                ),
                c.ListKeys(limit=dice.randrange(1, 9), project=dice.choice([None, "p0"])),
                c.ListAccounts(after=dice.choice(["", *self._keys]), limit=dice.randrange(1, 9)),
            ]
        )

    def _create(self) -> c.Create:
        self._n += 1
        id_ = f"key_{self._n:04d}"
        self._keys.append(id_)
        return c.Create(
            id=id_, digest=keys.digest(str(self._n), PEPPER), prefix="hg_", project=f"p{self._dice.randrange(3)}",
            organization=self._dice.choice(["default", "other"]),
            budget=self._dice.choice([None, "0.00001/total", "0.000002/hour"]),
            rpm=self._dice.choice([None, 20]), name=f"n{self._n}",
        )  # fmt: skip

    def _operation(self) -> Any:
        dice = self._dice
        if not self._open or dice.random() < 0.5:
            return self._admit()
        place = dice.randrange(len(self._open))
        request_id = self._open[place]
        usage = (dice.randrange(30), dice.randrange(5), 0, dice.randrange(3000), 0, 0, 0, 1, 0)
        kind = dice.random()
        if kind < 0.2:
            return wire.Extend(1, request_id, dice.randrange(6000))
        if dice.random() < 0.8:  # else it is asked for again after its end
            del self._open[place]
        if kind < 0.35:
            return wire.Void(1, request_id)
        return wire.Settle(
            1, request_id, usage, "upstream", "ok", "echo", billed=dice.random() < 0.8,
            answer=dice.choice([None, b"answer \"\\{} \x00\xff"]),
        )  # fmt: skip

    def _admit(self) -> wire.Admit:
        dice = self._dice
        self._n += 1
        request_id = f"req_{self._n:05d}"
        claim = dice.choice([None, None, 'k "1"', "k\\2", "{k3}"])
        return wire.Admit(
            1, request_id, dice.choice([*self._keys[-6:], "key_none"]), dice.choice("mmn"),
            dice.choice(["chat", "embed"]), (dice.randrange(40), 0, 0, 0, 0, 0, 0, 1, 0), dice.randrange(3),
            dice.randrange(3, 5000), dice.random() < 0.5, NEVER, claim, dice.choice([b"f", b"f", b"g"]),
            {"team": 'a "b", {c} \\ d'} if dice.random() < 0.3 else {},
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_both_stores_answer_the_same(
    seed: int, new_bench: Callable[..., Any], new_postgres_bench: Callable[..., Any]
) -> None:
    sqlite, postgres = new_bench("sqlite"), new_postgres_bench(lanes=1 + 3 * (seed % 2))
    script, dice = Script(seed), random.Random(seed)
    told: dict[str, int] = {}
    sqlite.price()
    postgres.price()
    for turn in range(120):
        script.now_us = sqlite.clock.us
        batch = script.batch()
        expected, got = sqlite.run(*batch), postgres.run(*batch)
        assert _plain(got) == _plain(expected), (turn, batch)
        script.saw(expected)
        for reply in got:
            name = type(reply).__name__
            if isinstance(reply, wire.Denied):
                name = reply.refused.code
            told[name] = told.get(name, 0) + 1
        step = dice.choice([0, 1, 1_000, 1_000_000, 60_000_000, 4000 * 1_000_000])
        sqlite.clock.us += step
        postgres.clock.us += step
        if turn % 40 == 39:
            sqlite.restart()
            postgres.restart()
    assert told["Grant"] > 40, told
    assert told["Recorded"] > 20, told
    assert sqlite.audit().ok
    sqlite.core.close()


def test_reads_are_the_same(new_bench: Callable[..., Any], new_postgres_bench: Callable[..., Any]) -> None:
    sqlite, postgres = new_bench("sqlite"), new_postgres_bench()
    answers = []
    for bench in (sqlite, postgres):
        bench.price()
        key = bench.key("1/total", models=frozenset({"m"}), scopes=frozenset({"inference", "admin"}))
        first = bench.admit(key, claim="k", fingerprint=b"f")
        trace = wire.Trace(3, key, "m", "k", b"f")
        seen = [bench.core.trace(trace)]
        bench.settle(first.request_id, 3, answer=b"x")
        second = bench.admit(key, claim="l", fingerprint=b"f")
        seen += [bench.core.trace(trace), bench.core.trace(wire.Trace(3, key, "m", "k", b"g"))]
        seen += [bench.core.trace(wire.Trace(3, "key_none", "m", "k", b"f"))]
        digest = keys.digest("secret 1", PEPPER)
        seen += [bench.core.identify(digest), bench.core.identify(b"no")]
        seen += [bench.core.of_incarnation("life-1") == [second.request_id], bench.core.incarnations()]
        seen += [bench.core.prices()]
        bench.do(c.RevokeKey(id=key))
        seen += [bench.core.identify(digest)]
        bench.clock.us += 25 * 3600 * 10**6
        seen += [bench.core.prune(1000), bench.core.prune(1000)]
        answers.append(seen)
    assert _plain(answers[0]) == _plain(answers[1])
    sqlite.core.close()


def test_one_bad_operation_fails_alone(new_postgres_bench: Callable[..., Any]) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key("0.000000030/total")
    ids = [bench.admit(key).request_id for _ in range(2)]
    bad = wire.Settle(1, ids[0], (0, 0, 0, 2**70, 0, 0, 0, 0, 0), "u", "o", "e", first_byte_us=2**63)
    good = wire.Settle(1, ids[1], (0, 0, 0, 4, 0, 0, 0, 0, 0), "u", "o", "e")
    replies = bench.run(bad, good)
    assert [type(reply) for reply in replies] == [wire.Failed, wire.Recorded]
    budget = bench.budgets(key)["total"]
    assert (budget.spent, budget.held) == (4, 10)


def test_ids_that_no_database_could_keep_fail_alone(new_postgres_bench: Callable[..., Any]) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key()

    def admit(key_id: str, request_id: str) -> wire.Admit:
        return wire.Admit(1, request_id, key_id, "m", "chat", (0,) * 9, 1, 1, False, NEVER)

    replies = bench.run(
        admit("key\0", "req_a"),
        admit(key, "req_b"),
        wire.Void(1, "req\0"),
        admit(key, "req\0"),
        admit(key, "req_c"),
    )
    assert [reply.request_id for reply in replies if isinstance(reply, wire.Grant)] == ["req_b", "req_c"]
    assert {getattr(reply, "code", None) for reply in replies if isinstance(reply, wire.Failed)} == {"invalid"}


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, order="deterministic")  # sets have no order of their own

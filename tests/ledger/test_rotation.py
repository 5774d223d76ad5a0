"""A rotated key: its successor is like it, and it goes on itself for as long as was asked."""

from __future__ import annotations

from typing import Any

from headgate_gateway.domain import commands as c
from headgate_gateway.domain import keys
from headgate_gateway.ledger import wire

PEPPER = b"p" * 32
SECOND = 1_000_000


def rotate(bench: Any, key: str, overlap_s: int = 0, *, name: str = "new") -> Any:
    return bench.do(
        c.Rotate(
            id=key, successor=f"key_{name}", digest=keys.digest(name, PEPPER), prefix="hg_", overlap_s=overlap_s
        )
    )


def key_info(bench: Any, id_: str) -> c.KeyInfo:
    return next(key for key in bench.do(c.ListKeys(limit=1000)).keys if key.id == id_)


def test_the_successor_has_the_same_rights_limits_and_budgets(bench: Any) -> None:
    bench.price()
    old = bench.key(
        "0.000000100/month", rpm=5, tpm=1000, concurrency=2, models=frozenset({"m"}), max_output=50, name="ci"
    )
    bench.do(c.SetBudget(account=old, amount="1", window="day", hard=False, timezone="Europe/Berlin"))
    made = rotate(bench, old)
    assert isinstance(made, c.Created)
    before, after = key_info(bench, old), key_info(bench, made.id)
    for field in ("name", "project_id", "organization_id", "scopes", "models", "max_output", "expires_at"):
        assert getattr(before, field) == getattr(after, field), field
    for field in ("requests_per_minute", "tokens_per_minute", "concurrency"):
        assert getattr(before.account, field) == getattr(after.account, field), field
    budgets = {b.kind: (b.limit, b.hard, b.timezone) for b in after.account.budgets}
    assert budgets == {"month": (100, True, "UTC"), "day": (10**9, False, "Europe/Berlin")}
    assert bench.admit(old).refused.code == "invalid_api_key"
    assert isinstance(bench.admit(made.id), wire.Grant)


def test_credit_of_the_key_itself_goes_over_and_is_not_doubled(bench: Any) -> None:
    bench.price()
    old = bench.key(expires_at=bench.clock.us + 7200 * SECOND)
    expires = bench.clock.us + 3600 * SECOND
    bench.do(c.GrantCredit(account=old, amount="0.000000010", expires_at=expires))
    bench.do(c.GrantCredit(account=old, amount="0.000000020", priority=200))
    bench.settle(bench.admit(old, 4).request_id, 4)
    held = bench.admit(old, 3).request_id
    new = rotate(bench, old, overlap_s=60).id
    assert key_info(bench, new).expires_at == key_info(bench, old).expires_at == bench.clock.us + 7200 * SECOND
    grants = [(b.limit, b.spent, b.held, b.priority, b.ends_at) for b in key_info(bench, new).account.budgets]
    assert grants == [(3, 0, 0, 100, expires), (20, 0, 0, 200, None)]
    assert bench.admit(old, 1).refused.scope == "key:credit"
    bench.restart()
    assert bench.settle(held, 3).cost == 3
    bench.settle(bench.admit(new, 23).request_id, 23)
    assert bench.admit(new, 1).refused.code == "budget_exhausted"
    bench.clock.us += 3600 * SECOND
    newer = bench.do(
        c.Rotate(id=new, successor="key_newer", digest=keys.digest("newer", PEPPER), prefix="hg_", overlap_s=0)
    ).id
    assert bench.admit(newer, 1).refused.scope == "key:credit"  # prepaid, with nothing left
    bench.restart()
    assert bench.admit(newer, 1).refused.scope == "key:credit"
    bench.do(c.GrantCredit(account=newer, amount="0.000000001"))
    assert isinstance(bench.admit(newer, 1), wire.Grant)


def test_the_successor_pays_what_the_key_paid_now_and_as_it_is_planned(bench: Any) -> None:
    bench.price(output="0.001")
    old = bench.key()
    bench.do(c.SetPrice(model="m", rates={"output": "0.005"}, scope=old))
    bench.do(c.SetPrice(model="n", rates={"output": "0.006"}, scope=old))
    later = bench.clock.us + 60 * SECOND
    bench.do(c.SetPrice(model="m", rates={"output": "0.007"}, scope=old, effective_from=later))
    bench.clock.us += SECOND
    new = rotate(bench, old, overlap_s=3600).id
    bench.restart()
    for expected in ({"m": 5, "n": 6}, {"m": 7, "n": 6}):
        for key in (old, new):
            for model, cost in expected.items():
                assert bench.settle(bench.admit(key, 1, model=model).request_id, 1).cost == cost
        bench.clock.us = later


def test_the_old_key_works_until_the_overlap_ends(bench: Any) -> None:
    bench.price()
    old = bench.key()
    rotate(bench, old, overlap_s=60)
    _, ends_us = bench.core.identify(bench.core.state.keys[old].digest)
    assert ends_us == bench.clock.us + 60 * SECOND
    bench.clock.us += 59 * SECOND
    bench.restart()
    assert isinstance(bench.admit(old), wire.Grant)
    bench.clock.us += SECOND
    assert bench.admit(old).refused.code == "invalid_api_key"


def test_a_rotated_key_can_be_revoked_at_once(bench: Any) -> None:
    bench.price()
    old = bench.key()
    rotate(bench, old, overlap_s=60)
    assert bench.do(c.RevokeKey(id=old)).changed
    assert bench.admit(old).refused.code == "invalid_api_key"
    bench.restart()
    assert bench.admit(old).refused.code == "invalid_api_key"
    assert not bench.do(c.RevokeKey(id=old)).changed


def test_a_resent_rotation_makes_nothing_twice(bench: Any) -> None:
    old = bench.key()
    assert rotate(bench, old) == rotate(bench, old)
    assert len(bench.do(c.ListKeys(limit=1000)).keys) == 2


def test_what_cannot_be_rotated(bench: Any) -> None:
    old = bench.key()
    assert rotate(bench, "key_none").code == "not_found"
    assert rotate(bench, old, overlap_s=-1).field == "overlap_s"
    bench.do(c.RevokeKey(id=old))
    assert rotate(bench, old).code == "invalid"
    assert len(bench.do(c.ListKeys(limit=1000)).keys) == 1

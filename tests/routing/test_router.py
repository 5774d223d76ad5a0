from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest
from headgate_gateway.routing import Breaker, Router


@dataclass(frozen=True)
class T:
    name: str
    priority: int = 0
    weight: int = 1
    local: bool = False
    backend: str = "openai"


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def router(time: Time) -> Router:
    return Router(time, Random(5), failures=3, cooldown_s=5.0)


def fail(router: Router, target: T, times: int = 3) -> None:
    for _ in range(times):
        lease = router.lease("m", target)
        assert lease is not None
        lease.failed()


def test_priorities_come_first_and_everything_once(router: Router):
    targets = [T("c", priority=2), T("a"), T("b", priority=1), T("a2")]
    for _ in range(50):
        ordered = router.order("m", targets)
        assert [target.priority for target in ordered] == [0, 0, 1, 2]
        assert {target.name for target in ordered} == {"a", "a2", "b", "c"}


def test_first_tries_follow_the_weights(router: Router):
    targets = [T("heavy", weight=9), T("light", weight=1)]
    first = Counter(router.order("m", targets)[0].name for _ in range(10_000))
    assert 8_800 < first["heavy"] < 9_200


def test_weight_zero_is_out(router: Router):
    assert router.order("m", [T("off", weight=0)]) == []
    assert [target.name for target in router.order("m", [T("off", weight=0), T("on")])] == ["on"]


def test_the_busier_of_two_waits(router: Router):
    busy, idle = T("busy"), T("idle")
    leases = [router.lease("m", busy) for _ in range(3)]
    assert all(router.order("m", [busy, idle])[0] is idle for _ in range(50))
    for lease in leases:
        assert lease is not None
        lease.ended()
        lease.ended()  # only the first counts
    assert {router.order("m", [busy, idle])[0].name for _ in range(50)} == {"busy", "idle"}


def test_load_is_compared_by_weight(router: Router):
    big, small = T("big", weight=4), T("small", weight=1)
    for _ in range(3):
        router.lease("m", big)
    router.lease("m", small)
    assert all(router.order("m", [big, small])[0] is big for _ in range(50))


def test_failures_in_a_row_open_the_breaker(router: Router, time: Time):
    target, other = T("a"), T("b", priority=1)
    fail(router, target, 2)
    lease = router.lease("m", target)
    assert lease is not None
    lease.succeeded()
    lease.ended()
    fail(router, target, 2)
    assert router.order("m", [target, other]) == [target, other]
    fail(router, target, 1)
    assert router.order("m", [target, other]) == [other]
    assert router.lease("m", target) is None
    assert router.wait_s("m", [target]) == 5.0
    assert router.order("another model", [target]) == [target]


def test_a_single_probe_closes_or_reopens(router: Router, time: Time):
    target = T("a")
    fail(router, target)
    time.now += 5.0
    probe = router.lease("m", target)
    assert probe is not None
    assert router.order("m", [target]) == []
    assert router.lease("m", target) is None
    probe.failed()
    assert router.wait_s("m", [target]) == 10.0  # twice as long
    time.now += 10.0
    probe = router.lease("m", target)
    assert probe is not None
    probe.ended()  # the client left before anything was learnt: the next one probes
    probe = router.lease("m", target)
    assert probe is not None
    probe.succeeded()
    assert router.order("m", [target]) == [target]
    assert router.lease("m", target) is not None


def test_the_cooldown_has_a_ceiling():
    breaker = Breaker(failures=1, cooldown_s=5.0, cooldown_max_s=60.0)
    now, waits = 0.0, []
    for _ in range(8):
        assert breaker.enter(now)
        breaker.failed_at(now)
        waits.append(breaker.wait_s(now))
        now += waits[-1]
    assert waits == [5, 10, 20, 40, 60, 60, 60, 60]


def test_late_failures_do_not_prolong_an_open_breaker(router: Router, time: Time):
    target = T("a")
    leases = [router.lease("m", target) for _ in range(10)]
    for lease in leases:
        assert lease is not None
        time.now += 0.1
        lease.failed()
    assert router.wait_s("m", [target]) == pytest.approx(5.0 - 0.7)


def test_an_engine_of_ours_has_no_breaker(router: Router):
    target = T("a", local=True)
    fail(router, target, 20)
    assert router.order("m", [target]) == [target]
    assert router.order("m", [target, T("b")])


def test_explain_says_what_would_happen_and_changes_nothing(router: Router, time: Time):
    targets = [T("off", weight=0), T("a", weight=3), T("b"), T("dead"), T("spare", priority=1)]
    fail(router, targets[3])
    router.lease("m", targets[1])
    steps = {step.target: step for step in router.explain("m", targets)}
    assert router.explain("m", targets)[0].target == "a"
    assert (steps["a"].order, steps["a"].share, steps["a"].in_flight) == (1, 750_000, 1)
    assert (steps["b"].order, steps["b"].share) == (2, 250_000)
    assert (steps["spare"].order, steps["spare"].share) == (3, 0)
    assert (steps["off"].order, steps["off"].why) == (None, "weight 0")
    assert (steps["dead"].order, steps["dead"].breaker, steps["dead"].wait_ms) == (None, "open", 5_000)
    assert "failures" in steps["dead"].why
    assert router.explain("m", []) == []

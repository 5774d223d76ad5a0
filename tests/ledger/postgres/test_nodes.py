"""Several nodes on one database, broken connections, a server that dies: exact all the same."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psycopg
import pytest
from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.history import HOLD
from headgate_gateway.ledger.packing import pack
from headgate_gateway.ledger.postgres.core import lost_ending
from headgate_gateway.ledger.postgres.lane import Fenced
from headgate_gateway.ledger.postgres.slices import Counters
from headgate_gateway.ledger.store import StoreBroken, StoreFailed

from benchmarks.postgres_server import Server
from tests.ledger.test_rate_audit import limited, live
from tests.ledger.test_recovery import recover_waived

ZEROS = (0,) * 9
NEVER = 2**62
COUNTERS = msgspec.msgpack.Decoder(Counters)
NewBench = Callable[..., Any]


def admit(key: str, request_id: str, most: int = 10, **more: Any) -> wire.Admit:
    return wire.Admit(1, request_id, key, "m", "chat", ZEROS, most, most, False, NEVER, **more)


def settle(request_id: str, output: int) -> wire.Settle:
    return wire.Settle(1, request_id, (0, 0, 0, output, 0, 0, 0, 0, 0), "upstream", "ok", "echo")


def query(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as db:
        return db.execute(sql.encode()).fetchall()


def terminate_all(url: str) -> None:
    query(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND application_name = 'headgate'",
    )


def test_nodes_racing_on_one_budget_admit_exactly_what_it_pays(new_postgres_bench: NewBench) -> None:
    first = new_postgres_bench("a", seed=1, local_time=False)
    second = new_postgres_bench("b", seed=2, local_time=False, lanes=3)
    first.price()
    keys = [first.key(project=f"p{n}") for n in range(4)]
    first.do(c.SetBudget(account="default", amount="0.000001003", window="total"))
    first.do(c.SetLimit(account="p0", kind="concurrency", amount=9))
    start = threading.Barrier(2)

    def race(bench: Any, name: str) -> list[Any]:
        start.wait()
        replies = []
        for turn in range(16):
            batch = [admit(keys[n % 4], f"req_{name}_{turn}_{n}") for n in range(10)]
            replies += bench.run(*batch)
        return replies

    with ThreadPoolExecutor(2) as pool:
        replies = [reply for found in pool.map(race, (first, second), "ab") for reply in found]
    granted = [reply.request_id for reply in replies if isinstance(reply, wire.Grant)]
    assert len(granted) == 100
    assert sum(request_id[-1] in "048" for request_id in granted) <= 9
    for bench, name in ((second, "a"), (first, "b")):  # each ends what the other admitted
        for request_id in [request_id for request_id in granted if f"_{name}_" in request_id]:
            assert bench.run(settle(request_id, 10))[0].cost == 10
    assert first.budgets("default")["total"].spent == 1000
    assert {info.in_flight for info in first.do(c.ListAccounts()).accounts} == {0}


def test_organizations_in_several_lanes_do_not_disturb_each_other(new_postgres_bench: NewBench) -> None:
    bench = new_postgres_bench(lanes=4)
    bench.price()
    keys = [bench.key("0.000000050/total", project="p", organization=f"o{n}") for n in range(8)]
    replies = bench.run(*(admit(key, f"req_{n}_{key}") for key in keys for n in range(7)))
    kinds = [type(reply).__name__ for reply in replies]
    assert kinds == (["Grant"] * 5 + ["Denied"] * 2) * 8
    granted = [reply.request_id for reply in replies if isinstance(reply, wire.Grant)]
    assert {reply.cost for reply in bench.run(*(settle(request_id, 3) for request_id in granted))} == {3}
    assert [bench.budgets(key)["total"].spent for key in keys] == [15] * 8
    assert bench.audit().checked["chains"] == 4


def test_a_project_made_on_two_nodes_at_once_is_one(new_postgres_bench: NewBench) -> None:
    benches = [new_postgres_bench(name, seed=n) for n, name in enumerate("abc")]
    for n, bench in enumerate(benches):
        bench.n = 100 * n
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda bench: [bench.key(project=f"p{n}") for n in range(5)], benches))
    accounts = benches[0].do(c.ListAccounts(limit=1000)).accounts
    assert sorted(account.kind for account in accounts) == ["key"] * 15 + ["organization"] + ["project"] * 5


def test_what_one_node_changes_holds_on_the_other_at_once(new_postgres_bench: NewBench) -> None:
    first, second = new_postgres_bench("a", seed=1), new_postgres_bench("b", seed=2)
    first.price()
    key = first.key()
    assert second.admit(key, 10).held == 10
    first.price(output="0.002")
    assert second.admit(key, 10).held == 20
    first.do(c.SetBudget(account=key, amount="0.000000035", window="total"))
    assert second.admit(key, 10).held == 20
    assert second.admit(key, 10).refused.code == "budget_in_flight"
    first.do(c.RevokeKey(id=key))
    assert second.admit(key, 10).refused.code == "invalid_api_key"
    assert [version.rates["output"].nano for version in second.core.prices()] == [2_000_000]


def test_time_never_runs_backwards_whichever_node_is_asked(url: str, new_postgres_bench: NewBench) -> None:
    ahead, behind = new_postgres_bench("ahead"), new_postgres_bench("behind", seed=8)
    behind.clock.us -= 3600 * 10**6
    ahead.price()
    key = ahead.key("0.000000010/hour")
    first = ahead.admit(key, 10)
    with psycopg.connect(url, autocommit=True) as db:
        before = db.execute("SELECT max(at_us) FROM organizations").fetchone()
        behind.settle(first.request_id, 10)
        assert db.execute("SELECT max(at_us) FROM organizations").fetchone() == before
        ((finished_us,),) = db.execute("SELECT finished_us FROM usage_records").fetchall()
    assert (finished_us,) == before
    assert behind.admit(key, 1).refused.code == "budget_exhausted"  # the hour is not yet over there either


def test_an_idempotency_key_on_two_nodes_runs_once(new_postgres_bench: NewBench) -> None:
    benches = [new_postgres_bench(name, seed=n) for n, name in enumerate("ab")]
    benches[0].price()
    key = benches[0].key()
    claim: dict[str, Any] = {"claim": "k", "fingerprint": b"f"}

    def ask(n: int) -> list[Any]:
        return list(benches[n].run(admit(key, f"req_{n}", **claim)))

    with ThreadPoolExecutor(2) as pool:
        replies = [reply for found in pool.map(ask, range(2)) for reply in found]
    (granted,) = [reply for reply in replies if isinstance(reply, wire.Grant)]
    (other,) = [reply.refused for reply in replies if isinstance(reply, wire.Denied)]
    assert (other.code, other.record_id) == ("idempotency_in_progress", granted.request_id)


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_a_connection_cut_around_commit_counts_once(
    moment: Any, proxied: tuple[Any, str], new_postgres_bench: NewBench
) -> None:
    proxy, url = proxied
    bench = new_postgres_bench("node", url=url)
    bench.price()
    key = bench.key("1/total", rpm=100)
    (kept,) = [bench.admit(key).request_id]
    proxy.cut = moment
    grant = bench.admit(key, claim="k", fingerprint=b"f")
    assert isinstance(grant, wire.Grant)
    proxy.cut = moment
    assert bench.settle(grant.request_id, 7).cost == 7
    proxy.cut = moment
    created = bench.key("1/day", project="new")
    assert proxy.cuts == 3
    budget = bench.budgets(key)["total"]
    assert (budget.spent, budget.held) == (7, 10)
    assert bench.admit(created, 5).held == 5
    assert bench.settle(kept, 10).cost == 10


def test_a_commit_whose_outcome_cannot_be_asked_for_ends_the_process_and_counts_once(
    proxied: tuple[Any, str], new_postgres_bench: NewBench
) -> None:
    proxy, url = proxied
    bench = new_postgres_bench("node", url=url)
    bench.price()
    key = bench.key("1/total")
    grant = bench.admit(key)
    proxy.refuse_after_cut, proxy.cut = True, "after_commit"
    gone = threading.Event()

    def hurry() -> None:
        while not gone.wait(0.01):
            bench.clock.us += proxy.cuts * 1_000_000

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hurry)
        try:
            with pytest.raises(StoreBroken, match="cannot be found out"):
                bench.settle(grant.request_id, 7)
        finally:
            gone.set()
    proxy.refusing = False
    bench.restart()  # what the supervisor does; the worker then asks again
    assert bench.settle(grant.request_id, 7).cost == 7
    assert bench.budgets(key)["total"].spent == 7


def test_idle_sessions_that_were_ended_are_opened_again(url: str, new_postgres_bench: NewBench) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key()
    for _ in range(3):
        terminate_all(url)
        assert isinstance(bench.admit(key), wire.Grant)
    terminate_all(url)
    assert len(bench.core.prices()) == 1


def test_nodes_racing_while_their_sessions_are_ended_stay_exact(url: str, new_postgres_bench: NewBench) -> None:
    benches = [new_postgres_bench(name, seed=n, local_time=False) for n, name in enumerate("ab")]
    benches[0].price()
    key = benches[0].key("0.000000500/total")
    done = threading.Event()

    def disturb() -> int:
        dice, times = random.Random(5), 0
        while not done.wait(dice.random() * 0.05):
            terminate_all(url)
            times += 1
        return times

    def race(n: int) -> list[Any]:
        replies = []
        for turn in range(60):
            (reply,) = benches[n].run(admit(key, f"req_{n}_{turn}"))
            replies.append(reply)
            if isinstance(reply, wire.Grant) and turn % 3 == 0:
                (ended,) = benches[n].run(wire.Void(1, reply.request_id))
                while isinstance(ended, wire.Failed):
                    assert ended.code == "unavailable"
                    (ended,) = benches[n].run(wire.Void(1, reply.request_id))
        return replies

    with ThreadPoolExecutor(3) as pool:
        disturbing = pool.submit(disturb)
        try:
            list(pool.map(race, range(2)))
        finally:
            done.set()
        assert disturbing.result() > 5
    replies = []
    for turn in range(60):  # what is left of the budget, undisturbed
        replies += benches[0].run(admit(key, f"req_last_{turn}"))
    assert isinstance(replies[-1], wire.Denied)
    assert benches[1].budgets(key)["total"].held == 500


def test_a_server_that_dies_and_returns(server: Any, new_postgres_bench: NewBench) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key("1/total")
    grant = bench.admit(key)
    with server.dead():  # no clean end: the server recovers from its log
        refused = bench.admit(key, request_id="req_during")
        assert refused.refused.code == "ledger_unavailable"
        (failed,) = bench.run(settle(grant.request_id, 3))
        assert failed.code == "unavailable"
        with pytest.raises(StoreFailed):
            bench.core.identify(b"x")
    assert bench.settle(grant.request_id, 3).cost == 3
    assert isinstance(bench.admit(key, request_id="req_during"), wire.Grant)
    assert bench.budgets(key)["total"].spent == 3


def test_a_second_start_of_a_node_shuts_the_first_out(new_postgres_bench: NewBench) -> None:
    first = new_postgres_bench("same", seed=1)
    first.price()
    key = first.key()
    grant = first.admit(key)
    second = new_postgres_bench("same", seed=2)
    with pytest.raises(Fenced, match="goes on elsewhere"):
        first.settle(grant.request_id, 1)
    assert second.core.of_incarnation("life-1") == [grant.request_id]
    assert second.settle(grant.request_id, 1).cost == 1


def test_what_a_lost_node_left_open_ends_at_no_cost(new_postgres_bench: NewBench) -> None:
    lost, other = new_postgres_bench("lost", seed=1), new_postgres_bench("other", seed=2, silent_s=0.0)
    lost.price()
    key = lost.key("0.000000010/total", concurrency=1)
    grant = lost.admit(key)
    assert other.admit(key).refused.code == "budget_in_flight"
    other.core.fence()
    left_open = other.core.left_open("")
    assert len(left_open) == 1
    other.core.run([lost_ending(request_id) for request_id in left_open])
    assert isinstance(other.admit(key), wire.Grant)
    with pytest.raises(Fenced):
        lost.settle(grant.request_id, 10)
    rows = query(other.url, "SELECT outcome, cost, billed, flagged FROM usage_records")
    assert rows == [("lost_node", 0, 0, 1)]
    lost.restart()  # it returns as a new epoch and knows that the request has ended
    for _ in range(2):
        assert lost.settle(grant.request_id, 10).cost == 0
    entries = query(other.url, "SELECT target, detail FROM audit_log WHERE action = 'proof.late'")
    assert [target for target, _ in entries] == [grant.request_id]  # the house bears it, once
    assert json.loads(entries[0][1])["cost"] == "0.00000001"
    assert query(other.url, "SELECT outcome, cost, billed, flagged FROM usage_records") == rows


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE usage_records SET cost = cost - 1", "was changed"),
        ("UPDATE usage_records SET detail = set_byte(detail, 3, 7)", "was changed"),
        ("DELETE FROM usage_records", "the tables have 0"),
        ("DELETE FROM links WHERE number = (SELECT max(number) FROM links)", "its tail was cut off"),
        ("UPDATE windows SET spent = spent - 1", "says spent"),
        ("UPDATE holds SET packed = set_byte(packed, 0, 1)", "cannot be read"),
        ("DELETE FROM holds", "are open"),
        ("DELETE FROM counters", "counters of account"),
        ("UPDATE counters SET packed = overlay(packed placing '\\x05' from 2)", "in flight"),
        ("ALTER TABLE voids DISABLE TRIGGER voids_append_only", "trigger"),
        ("ALTER TABLE windows DROP CONSTRAINT windows_within_cap", "CHECK"),
    ],
)
def test_the_audit_names_what_was_tampered_with(change: str, named: str, new_postgres_bench: NewBench) -> None:
    bench = new_postgres_bench()
    bench.price()
    key = bench.key("1/total")
    bench.settle(bench.admit(key).request_id, 7)
    bench.admit(key)
    tables = ("usage_records", "links")
    before = bench.audit()
    assert before.ok
    assert before.checked["usage_records"] == 1
    with psycopg.connect(bench.url, autocommit=True) as db:
        for table in tables:
            with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
                db.execute(f"DELETE FROM {table}".encode())
            db.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
        db.execute(change.encode())
        for table in tables:
            db.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())
    report = bench.audit()
    assert not report.ok
    assert named in str(report.first_difference)
    bench.audit = lambda: before


def test_the_audit_names_an_open_hold_that_pinned_another_price(new_postgres_bench: NewBench) -> None:
    bench = new_postgres_bench()
    bench.price()
    bench.price("other")
    grant = bench.admit(bench.key("1/total"))
    before = bench.audit()
    assert before.checked["open holds"] == 1
    with psycopg.connect(bench.url, autocommit=True) as db:
        ((packed,),) = db.execute("SELECT packed FROM holds").fetchall()
        ((other,),) = db.execute("SELECT id FROM prices WHERE model = 'other'").fetchall()
        hold = msgspec.structs.replace(HOLD.decode(packed), price=other)
        db.execute("UPDATE holds SET packed = %s", (msgspec.msgpack.encode(hold),))
    assert f"{grant.request_id} pinned the price {other}, in force was" in str(bench.audit().first_difference)
    bench.audit = lambda: before


def test_with_the_policy_waive_only_what_had_ended_is_paid(new_postgres_bench: NewBench) -> None:
    recover_waived(new_postgres_bench())


def test_limits_per_minute_are_audited(new_postgres_bench: NewBench) -> None:
    bench = limited(new_postgres_bench())
    before = bench.audit()
    assert before.ok, before.first_difference
    ((packed,),) = query(bench.url, f"SELECT packed FROM counters WHERE account = '{bench.audit_key}'")
    counters = COUNTERS.decode(packed)
    counters.requests.state = "0"
    with psycopg.connect(bench.url, autocommit=True) as db:
        db.execute("UPDATE counters SET packed = %s WHERE account = %s", (pack(counters), bench.audit_key))
    report = bench.audit()
    assert f"the rate of requests of account {bench.audit_key} is at 0, not from" in str(report.first_difference)
    bench.audit = lambda: before


def test_an_honest_history_of_limits_is_not_accused(new_postgres_bench: NewBench) -> None:
    live(new_postgres_bench(), random.Random(5))


def test_a_database_that_went_back_is_not_written_to(
    server: Server, new_postgres_bench: NewBench, url: str
) -> None:
    """A copy that had not followed took over, or a backup was restored, under a node or before it starts."""
    bench = new_postgres_bench()
    bench.price()
    key = bench.key("1/total")
    bench.settle(bench.admit(key).request_id, 7)
    name = url.partition("@/")[2].partition("?")[0]

    def swap(*orders: str) -> None:
        with psycopg.connect(server.url(), autocommit=True) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname LIKE %s",
                (f"{name}%",),
            )
            for order in orders:
                db.execute(order.encode())

    swap(f"CREATE DATABASE {name}_older TEMPLATE {name} STRATEGY file_copy")
    later = bench.admit(key).request_id
    bench.settle(later, 7)
    swap(f"ALTER DATABASE {name} RENAME TO {name}_newer", f"ALTER DATABASE {name}_older RENAME TO {name}")
    for _ in range(2):
        assert bench.run(admit(key, "req_on_the_older"))[0].refused.code == "ledger_unavailable"
        rejected = bench.do(c.SetLimit(account="p", kind="requests", amount=9))  # in a lane that has lost nothing
        assert rejected.code == "unavailable"
        bench.restart()
    swap(f"ALTER DATABASE {name} RENAME TO {name}_older", f"ALTER DATABASE {name}_newer RENAME TO {name}")
    bench.restart()  # it began lives in the older one that this one knows nothing of
    assert isinstance(bench.admit(key), wire.Grant)
    assert query(url, "SELECT count(*) FROM usage_records") == [(2,)]

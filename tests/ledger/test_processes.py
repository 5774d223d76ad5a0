"""The ledger as a real process: killed at any point, it carries on, and every charge is there once."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from headgate_engine import ipc
from headgate_gateway.admin.commands import (
    CreateKey,
    KeyCreated,
    ListAccounts,
    RevokeKey,
    SetBudget,
)
from headgate_gateway.admin.sqlite_usage import SqliteUsage
from headgate_gateway.domain.admission import (
    Granted,
    Principal,
    Refused,
    Settlement,
)
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.audit import audit
from headgate_gateway.ledger.client import LedgerClient
from headgate_gateway.ledger.embedded import momentary_ledger
from headgate_gateway.ledger.line import LedgerUnavailable
from headgate_gateway.settings import Server, Settings
from headgate_plugin_api import Usage

from tests.ledger.data_folder import CLOCK, DataFolder


class House(DataFolder):
    """A data folder and the ledger process that serves it, which ends with the end of a pipe."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Settings(server=Server(data_dir=folder)), seed=11)
        self._parent: int | None = None
        self.parent_read: int | None = None

    def start(self, limits: Callable[[], None] | None = None) -> None:
        """Start the ledger and wait until it is ready."""
        before, (self.parent_read, self._parent) = self.parent_read, os.pipe()
        self.arguments, self.inherited = ("--parent-fd", str(self.parent_read)), (self.parent_read,)
        super().start(limits)
        if before is not None:
            os.close(before)

    def kill(self) -> None:
        """kill -9."""
        super().kill()
        self.orphan()

    def orphan(self) -> None:
        """What the ledger sees when the supervisor dies."""
        if self._parent is not None:
            os.close(self._parent)
            self._parent = None

    def stop(self) -> int:
        """Stop gracefully; returns the exit code."""
        assert self.ledger is not None
        assert self._parent is not None
        os.write(self._parent, b"\n")
        code = self.ledger.wait(timeout=20)
        self.orphan()
        return code


@pytest.fixture
def house(tmp_path: Path) -> Any:
    house = House(tmp_path / "data")
    house.start()
    yield house
    os.close(house.parent_read)
    assert house.ledger is not None
    if house.ledger.poll() is None:
        assert house.stop() == 0
    report = audit(house.layout)
    assert report.ok, report.first_difference


async def test_days_that_were_missed_are_sealed_at_the_start(tmp_path: Path, bench_class: Any) -> None:
    before = bench_class(tmp_path / "data")  # its clock stands some days ago
    before.price()
    key = before.key("1/total")
    for _ in range(3):
        before.settle(before.admit(key).request_id, 7)
    before.admit(key)
    before.core.close()
    house = House(tmp_path / "data")
    house.start()
    try:

        async def sealed() -> bool:
            return audit(house.layout).began.startswith("seal 1 of ")

        await until(sealed)
        assert audit(house.layout, full=True).checked["agreeing seals"] == 1
        assert "usage_records" not in audit(house.layout).checked  # all of them lie before the seal
        house.kill()
        house.start()
        assert audit(house.layout).began.startswith("seal 1 of ")
    finally:
        os.close(house.parent_read)
        assert house.stop() == 0
    report = audit(house.layout)
    assert report.ok, report.first_difference
    assert report.began.startswith("seal 1 of ")


async def until(condition: Callable[[], Any], within: float = 20.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.02)


def settlement(request_id: str, output: int, **more: Any) -> Settlement:
    facts: dict[str, Any] = {"usage_source": "upstream", "outcome": "ok", "backend": "echo", **more}
    return Settlement(request_id=request_id, usage=Usage(output=output), **facts)


async def test_64_at_once_on_a_budget_worth_20(house: Any) -> None:
    async with house.client(0) as one, house.client(1) as two:
        _, principal = await house.key(one, "0.000000200/total")
        replies = await asyncio.gather(
            *((one, two)[n % 2].admit(house.admission(principal, 10)) for n in range(64))
        )
        granted = [reply for reply in replies if isinstance(reply, Granted)]
        assert len(granted) == 20
        assert {reply.code for reply in replies if isinstance(reply, Refused)} == {"budget_in_flight"}
        clients = {reply.request_id: (one, two)[n % 2] for n, reply in enumerate(replies) if reply in granted}
        settled = await asyncio.gather(
            *(client.settle(settlement(request_id, 10)) for request_id, client in clients.items())
        )
        assert sum(done.cost for done in settled) == 200
        refused = await two.admit(house.admission(principal, 1))
        assert isinstance(refused, Refused)
        assert refused.code == "budget_exhausted"


async def test_the_ledger_is_killed_under_load_and_nothing_is_lost_or_doubled(house: Any) -> None:
    async with house.client() as client:
        made, principal = await house.key(client, "1/total")
        costs: dict[str, int] = {}
        stop = asyncio.Event()

        async def caller(seed: int) -> None:
            noise = random.Random(seed)
            while not stop.is_set():
                output = noise.randrange(1, 100)
                reply = await client.admit(house.admission(principal, output))
                assert isinstance(reply, Granted), reply
                used = noise.randrange(output + 1)
                costs[reply.request_id] = used
                done = await client.settle(settlement(reply.request_id, used))
                assert done.cost == used

        callers = [asyncio.create_task(caller(n)) for n in range(16)]
        for _ in range(3):
            enough = len(costs) + 100

            async def more(enough: int = enough) -> bool:
                return len(costs) >= enough

            await until(more)
            house.kill()
            house.start()
        stop.set()
        await asyncio.gather(*callers)
        page = await client.command(ListAccounts())
        (account,) = [found for found in page.accounts if found.id == made.id]
        assert account.budgets[0].held == 0
        assert account.budgets[0].spent == sum(costs.values())
        totals = await SqliteUsage(house.layout).totals("key")
        assert [(total.records, total.cost) for total in totals] == [(len(costs), sum(costs.values()))]


WORKER = """
import asyncio, sys
from pathlib import Path
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.admission import Admission, Settlement
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.client import LedgerClient
from headgate_plugin_api import Usage

async def main():
    client = LedgerClient(Layout.of(Path(sys.argv[1])), worker=5, clock=SystemClock())
    await client.start()
    principal = await client.authenticate(sys.argv[2])
    for name in ("admitted", "sent", "streaming", "done"):
        await client.admit(Admission(request_id=f"req_{name}", principal=principal, model="m", task="chat",
                                     bound=Usage(), least_output=100, most_output=100))
        if name != "admitted":
            client.dispatched(f"req_{name}")
    for n in range(1, 43):
        client.delivered("req_streaming", Usage(output=n))
    await client.settle(Settlement(request_id="req_done", usage=Usage(output=7), usage_source="upstream",
                                   outcome="ok", backend="echo"))
    print("flying", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def crash_worker(house: Any, key: str) -> subprocess.Popen[str]:
    """A worker with four requests in four states."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(house.layout.data_dir), key], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert await asyncio.to_thread(worker.stdout.readline) == "flying\n"
    return worker


async def recovered(house: Any, client: LedgerClient, key_id: str) -> None:
    """Every hold has ended, and each as its slot says."""

    async def nothing_held() -> bool:
        page = await client.command(ListAccounts())
        (account,) = [found for found in page.accounts if found.id == key_id]
        return account.budgets[0].held == 0 and account.in_flight == 0

    await until(nothing_held)
    page = await SqliteUsage(house.layout).records()
    assert {r.request_id: (r.outcome, r.cost, r.billed, r.usage.output) for r in page.records} == {
        "req_done": ("ok", 7, True, 7),
        "req_sent": ("gateway_crash", 0, False, 0),
        "req_streaming": ("gateway_crash", 42, True, 42),
    }

    async def nothing_left() -> bool:
        return not list((house.layout.data_dir / "flight").glob("worker-5-*"))

    await until(nothing_left)


async def test_a_killed_worker_is_recovered_from_its_flight_file(house: Any) -> None:
    async with house.client() as client:
        made, _ = await house.key(client, "1/total")
        worker = await crash_worker(house, made.key)
        with pytest.raises(AssertionError):
            await recovered_at_once(house)
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()
        await recovered(house, client, made.id)


async def recovered_at_once(house: Any) -> None:
    """While the worker lives, its file is there."""
    assert not list((house.layout.data_dir / "flight").glob("worker-5-*"))


async def test_everything_is_killed_and_the_next_start_recovers(house: Any) -> None:
    async with house.client() as client:
        made, _ = await house.key(client, "1/total")
    worker = await crash_worker(house, made.key)
    worker.kill()
    house.kill()
    worker.wait()
    assert worker.stdout is not None
    worker.stdout.close()
    house.start()
    async with house.client() as client:
        await recovered(house, client, made.id)


async def test_a_stopped_worker_is_not_a_dead_one(house: Any) -> None:
    async with house.client() as client:
        made, _ = await house.key(client, "1/total")
        worker = await crash_worker(house, made.key)
        worker.send_signal(signal.SIGSTOP)
        house.kill()
        house.start()

        async def welcomed() -> bool:
            return client.connected

        await until(welcomed)
        page = await client.command(ListAccounts())
        (account,) = [found for found in page.accounts if found.id == made.id]
        assert account.in_flight == 3
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()
        await recovered(house, client, made.id)


async def test_a_removed_flight_file_strands_no_money(house: Any) -> None:
    async with house.client() as client:
        made, _ = await house.key(client, "1/total")
    worker = await crash_worker(house, made.key)
    worker.kill()
    house.kill()
    worker.wait()
    assert worker.stdout is not None
    worker.stdout.close()
    for path in (house.layout.data_dir / "flight").glob("worker-5-*"):
        path.unlink()
    house.start()
    page = await SqliteUsage(house.layout).records(filters={"outcome": "gateway_crash"})
    assert [(record.cost, record.flagged) for record in page.records] == [(0, True)] * 3


async def test_an_admission_whose_caller_went_away_is_voided(house: Any) -> None:
    async with house.client() as client:
        made, principal = await house.key(client, "0.000000100/total")
        house.ledger.send_signal(signal.SIGSTOP)
        gone = asyncio.create_task(client.admit(house.admission(principal, 100)))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        late = await client.admit(house.admission(principal, 100, deadline_ms=1))
        assert isinstance(late, Refused)
        assert late.code == "ledger_unavailable"
        house.ledger.send_signal(signal.SIGCONT)

        async def free() -> bool:
            return isinstance(await client.admit(house.admission(principal, 100)), Granted)

        await until(free)
        page = await client.command(ListAccounts())
        (account,) = [found for found in page.accounts if found.id == made.id]
        assert account.in_flight == 1


async def test_a_revoke_reaches_every_worker_before_it_returns(house: Any) -> None:
    async with house.client(0) as one, house.client(1) as two:
        made, _ = await house.key(one, None)
        assert isinstance(await two.authenticate(made.key), Principal)
        await one.command(RevokeKey(id=made.id))
        for client in (one, two):
            refused = await client.authenticate(made.key)
            assert isinstance(refused, Refused)
            assert refused.code == "invalid_api_key"


async def test_a_new_key_works_at_once_where_it_was_unknown(house: Any) -> None:
    async with house.client(0) as one, house.client(1) as two:
        secret = "hg_" + "a" * 30
        assert isinstance(await two.authenticate(secret), Refused)
        made, principal = await house.key(one, None)
        assert await two.authenticate(made.key) == principal


async def test_the_admin_key(house: Any) -> None:
    async with house.client() as client:
        principal = await client.authenticate(house.layout.admin_key.read_text().strip())
        assert isinstance(principal, Principal)
        assert principal.admin
        assert house.layout.admin_key.stat().st_mode & 0o777 == 0o600


async def test_one_ledger_a_folder(house: Any) -> None:
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "headgate_gateway.ledger", "--settings", str(house.layout.settings),
         "--lock-wait", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert second.returncode == 3
    assert "is served by another headgate process" in second.stderr
    async with momentary_ledger(house.settings, house.layout) as admin:
        assert isinstance(await admin.command(CreateKey(project="p")), KeyCreated)


async def test_the_supervisors_pipe_stays_blocking_for_the_other_children(house: Any) -> None:
    assert os.get_blocking(house.parent_read)


async def test_the_ledger_ends_when_its_supervisor_dies(house: Any) -> None:
    house.orphan()
    assert await asyncio.to_thread(house.ledger.wait, 10) == 0
    assert not house.layout.ledger_socket.exists()


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 96))


async def test_whoever_else_comes_takes_no_workers_descriptor(house: Any) -> None:
    assert house.stop() == 0
    os.close(house.parent_read)
    house.parent_read = None
    house.start(few_descriptors)
    codec: ipc.Codec[wire.FromLedger] = ipc.Codec(wire.FromLedger)
    crowd: list[ipc.Connection[wire.FromLedger]] = []

    def silent() -> ipc.Connection[wire.FromLedger]:
        crowd.append(ipc.Connection(codec, lambda _connection, _message: None))
        return crowd[-1]

    async with house.client() as client:
        made, principal = await house.key(client, "1/total")
        for _ in range(200):
            (await ipc.connect(house.layout.ledger_socket, silent)).send(wire.Hello(wire.PROTOCOL, -1, "", []))
        assert isinstance(await client.admit(house.admission(principal, 1)), Granted)
        worker = await crash_worker(house, made.key)  # it can connect
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()

        async def recovered() -> bool:  # its file can be opened
            return not list((house.layout.data_dir / "flight").glob("worker-5-*"))

        await until(recovered)
    for connection in crowd:
        connection.abort()


async def test_without_a_ledger_nothing_is_admitted(house: Any) -> None:
    async with house.client() as client:
        _, principal = await house.key(client, "1/total")
        house.kill()
        refused = await client.admit(house.admission(principal, 1, deadline_ms=50))
        assert isinstance(refused, Refused)
        assert refused.code == "ledger_unavailable"
        assert refused.retry_after_ms is not None
        house.start()

        async def admitted() -> bool:
            return isinstance(await client.admit(house.admission(principal, 1)), Granted)

        await until(admitted)


async def test_a_command_that_was_given_up_does_not_come_about_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.client() as client:
        made, _ = await house.key(client, "1/total")
        house.kill()
        monkeypatch.setattr("headgate_gateway.ledger.line.SETTLE_WAIT_S", 0.2)
        with pytest.raises(LedgerUnavailable):
            await client.command(SetBudget(account=made.id, amount="5", window="total"))
        monkeypatch.undo()
        house.start()
        page = await client.command(ListAccounts())
        (account,) = [found for found in page.accounts if found.id == made.id]
        assert account.budgets[0].limit == 1_000_000_000


async def test_no_ledger_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate_gateway.ledger.line.CONNECT_WAIT_S", 0.05)
    client = LedgerClient(House(tmp_path).layout, worker=-1, clock=CLOCK)
    with pytest.raises(LedgerUnavailable, match="no ledger answers"):
        await client.start()

"""Usage records reach plugins, at least once and in order, whatever is killed: real processes, both stores."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance.test_kill import PATIENCE_S, SLOW_ECHO, Load
from tests.deployment import wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "usage_ndjson"

NOTES = '''
"""Appends a line for every call: which records; fails or hangs while a file of that name is there."""
import json, os, time
from pathlib import Path
from headgate_plugin_api import hookimpl
HEADGATE_API = 1
HERE = Path(os.environ["NOTES"])

@hookimpl
def headgate_usage_recorded(records):
    while (HERE / "{name}.hang").exists():
        time.sleep(0.01)
    if (HERE / "{name}.fail").exists():
        raise RuntimeError("told to fail")
    line = json.dumps([[r.seq, r.request_id, r.cost] for r in records]) + "\\n"
    with (HERE / "{name}.notes").open("a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
'''


def install(site: Path, distribution: str, points: dict[str, str]) -> None:
    """What an installer leaves behind: metadata with entry points."""
    info = site / f"{distribution}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1\n")
    lines = "".join(f"{name} = {module}\n" for name, module in points.items())
    (info / "entry_points.txt").write_text(f"[headgate.plugins]\n{lines}")


def install_notes(site: Path, *names: str) -> None:
    for name in names:
        install(site, f"notes_{name}", {name: f"notes_{name}"})
        (site / f"notes_{name}.py").write_text(NOTES.format(name=name))


def install_example(site: Path) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install(site, "headgate_usage_ndjson", project["entry-points"]["headgate.plugins"])
    (site / "headgate_usage_ndjson.py").symlink_to(EXAMPLE / "headgate_usage_ndjson.py")


class House:
    """A deployment with plugins that take records."""

    def __init__(self, gateway: Any, config: str, *, workers: int = 1) -> None:
        self.deployment = gateway(config, workers=workers, wait=False)
        self.folder: Path = self.deployment.folder
        self.site = self.folder / "site"
        self.deployment.environment = {"PYTHONPATH": str(self.site), "NOTES": str(self.folder)}

    def consumers(self) -> dict[str, Any]:
        return {found["name"]: found for found in self.deployment.admin("consumers")["data"]}

    def calls(self, name: str) -> list[list[tuple[int, str, int]]]:
        """What a consumer was given, call by call; of a line that a kill cut off nothing was returned from."""
        notes = self.folder / f"{name}.notes"
        if not notes.exists():
            return []
        found = []
        for line in notes.read_text().split("\n")[:-1]:
            try:
                found.append([tuple(record) for record in json.loads(line)])
            except ValueError:  # a line that was cut off, with the next behind it
                found.append([tuple(record) for record in json.loads(line[line.rindex("[[") :])])
        return found

    def taken(self, name: str) -> list[tuple[int, str, int]]:
        return [record for call in self.calls(name) for record in call]

    def records(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self.deployment.command("usage", "--records", "1000", "--after", str(after))
            rows += page["records"]
            after = page["after"]
        return rows

    def outbox(self) -> list[psutil.Process]:
        found: list[psutil.Process] = self.deployment.children("headgate_gateway.outbox")
        return found


def enable(*names: str) -> str:
    return f"[plugins]\nenable = {json.dumps(names)}\n"


def stored(store: str, request: pytest.FixtureRequest) -> str:
    if store == "sqlite":
        return ""
    return f'[store]\nurl = "{request.getfixturevalue("database")}"\n'


def in_order(calls: list[list[tuple[int, str, int]]], places: list[int]) -> bool:
    """Whether every call goes on after what was taken, or back to something that was, and leaves nothing out."""
    follows = dict(zip([0, *places], places, strict=False))
    reached = 0
    for call in calls:
        numbers = [seq for seq, _, _ in call]
        before = [place for place, after in follows.items() if after == numbers[0]]
        if not before or before[0] > reached or any(follows[a] != b for a, b in itertools.pairwise(numbers)):
            return False
        reached = max(reached, numbers[-1])
    return True


@pytest.mark.timeout(300)
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_everything_is_seen_whatever_is_killed(
    gateway: Any, store: str, request: pytest.FixtureRequest
) -> None:
    house = House(gateway, stored(store, request) + enable("ndjson", "notes") + SLOW_ECHO, workers=2)
    install_example(house.site)
    install_notes(house.site, "notes")
    deployment = house.deployment
    deployment.start()
    await asyncio.to_thread(wait_for, lambda: len(house.consumers()) == 2, "the beginning of both")
    load = Load(deployment.url, deployment.key(budget="100/total"))
    async with load.running():
        for victim in ("headgate_gateway.outbox", "headgate_gateway.ledger", "headgate_gateway.outbox"):
            await load.progress(60)
            (process,) = deployment.children(victim)
            process.kill()
            async with asyncio.timeout(PATIENCE_S):
                while process.pid in (pids := [p.pid for p in deployment.children(victim)]) or not pids:
                    await asyncio.sleep(0.02)
        await load.progress(60)
        await asyncio.to_thread(deployment.kill_everything)
        await asyncio.to_thread(deployment.start)
        await load.progress(60)
    assert deployment.stop() == 0
    records = house.records()
    assert {record["request_id"] for record in records} >= set(load.received)
    places = [record["seq"] for record in records]
    calls = house.calls("notes")
    assert in_order(calls, places)
    assert {record for call in calls for record in call} == {
        (record["seq"], record["request_id"], round(float(record["cost"]) * 1e9)) for record in records
    }
    kept = [json.loads(line) for line in (house.folder / "usage.ndjson").read_text().splitlines()]
    assert [line["request_id"] for line in kept] == [record["request_id"] for record in records]
    assert sum(line["cost"] for line in kept) == sum(round(float(record["cost"]) * 1e9) for record in records)
    listed = deployment.command("consumers", "list")["consumers"]
    assert {found["name"]: found["position"] for found in listed} == dict.fromkeys(
        ("ndjson", "notes"), places[-1]
    )


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_one_fails_and_one_is_stuck(gateway: Any, store: str, request: pytest.FixtureRequest) -> None:
    house = House(gateway, stored(store, request) + enable("well", "failing", "stuck") + SLOW_ECHO)
    install_notes(house.site, "well", "failing", "stuck")
    (house.folder / "failing.fail").touch()
    (house.folder / "stuck.hang").touch()
    deployment = house.deployment
    deployment.start()
    await asyncio.to_thread(wait_for, lambda: len(house.consumers()) == 3, "the beginning of all")
    load = Load(deployment.url, deployment.key())
    async with load.running():
        await load.progress(40)
        await asyncio.to_thread(wait_for, lambda: len(house.taken("well")) >= 40, "delivery")
    found = await asyncio.to_thread(wait_for, lambda: _with_error(house), "the error in the list")
    assert found["failing"]["error"] == "RuntimeError: told to fail"
    assert found["failing"]["position"] == found["stuck"]["position"]
    assert found["failing"]["behind"] >= 40
    wait_for(lambda: _metric(deployment, 'headgate_consumer_failures_total{consumer="failing"}') > 0, "the count")
    wait_for(lambda: _metric(deployment, 'headgate_consumer_lag_records{consumer="stuck"}') >= 40, "the lag")
    assert _metric(deployment, 'headgate_consumer_failures_total{consumer="stuck"}') == 0
    (house.folder / "failing.fail").unlink()
    records = house.records()
    wait_for(lambda: len(house.taken("failing")) == len(records), "the rest of what failed")
    assert house.consumers()["failing"]["error"] == ""
    assert not house.taken("stuck")
    assert deployment.stop() == 0  # which is bounded: a hook that never returns is left behind
    assert "a consumer did not end" in deployment.err
    (house.folder / "stuck.hang").unlink()
    deployment.start()
    wait_for(lambda: len(house.taken("stuck")) == len(records), "what was left behind")
    assert house.taken("stuck") == house.taken("well") == house.taken("failing")
    assert deployment.stop() == 0
    assert deployment.audit()["ok"]


def _with_error(house: House) -> dict[str, Any] | None:
    found = house.consumers()
    return found if found["failing"]["error"] else None


def _metric(deployment: Any, name: str) -> float:
    answer = httpx.get(f"{deployment.url}/metrics", headers={"authorization": f"Bearer {deployment.admin_key}"})
    return next((float(line.split()[-1]) for line in answer.text.splitlines() if line.startswith(name)), -1.0)


async def test_what_was_recorded_before_a_stop_is_handed_over(gateway: Any) -> None:
    house = House(gateway, enable("notes") + SLOW_ECHO)
    install_notes(house.site, "notes")
    deployment = house.deployment
    deployment.start()
    wait_for(lambda: house.consumers(), "the beginning")
    load = Load(deployment.url, deployment.key())
    async with load.running():
        await load.progress(30)
    assert deployment.stop() == 0
    assert [request_id for _, request_id, _ in house.taken("notes")] == [r["request_id"] for r in house.records()]


async def test_a_database_that_goes_and_comes_back(gateway: Any, database: str, postgres_server: Any) -> None:
    house = House(gateway, f'[store]\nurl = "{database}"\n' + enable("notes") + SLOW_ECHO)
    install_notes(house.site, "notes")
    deployment = house.deployment
    deployment.start()
    wait_for(lambda: house.consumers(), "the beginning")
    load = Load(deployment.url, deployment.key())
    async with load.running():
        await load.progress(20)
        broken = load.broken
        await asyncio.to_thread(postgres_server.kill)
        async with asyncio.timeout(PATIENCE_S):
            while load.broken == broken:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(postgres_server.start_again)
        await load.progress(20)
    records = house.records()
    wait_for(lambda: len({one for _, one, _ in house.taken("notes")}) == len(records), "delivery of all")
    assert in_order(house.calls("notes"), [record["seq"] for record in records])
    assert deployment.stop() == 0


async def test_another_node_takes_over(gateway: Any, database: str) -> None:
    """Whose records are one node's, too, which is gone: all lie in one order."""
    config = f'[store]\nurl = "{database}"\n' + enable("notes") + SLOW_ECHO
    one, other = House(gateway, config), House(gateway, config)
    for house in (one, other):
        install_notes(house.site, "notes")
    one.deployment.start()
    wait_for(lambda: one.consumers(), "the beginning")
    (other.folder / "data").mkdir()
    (other.folder / "data" / "pepper").write_text((one.folder / "data" / "pepper").read_text())
    other.deployment.start()
    loads = [
        Load(house.deployment.url, house.deployment.key(project=name))
        for name, house in (("a", one), ("b", other))
    ]
    async with loads[0].running(), loads[1].running():
        for load in loads:
            await load.progress(30)
    both = len(one.records())
    wait_for(lambda: len(one.taken("notes")) >= both, "delivery of both nodes' records by the first")
    assert other.calls("notes") == []
    (one.folder / "notes.fail").touch()
    load = loads[0]
    load.stopped = False
    async with load.running():
        await load.progress(5)
    one.deployment.kill_everything()
    records = other.records()
    left = {record["request_id"] for record in records} - {one_id for _, one_id, _ in one.taken("notes")}
    assert left
    wait_for(lambda: {one_id for _, one_id, _ in other.taken("notes")} >= left, "the lost node's records")
    assert in_order(one.calls("notes") + other.calls("notes"), [record["seq"] for record in records])
    assert other.deployment.stop() == 0


def test_without_a_plugin_that_asks_there_is_no_process(gateway: Any) -> None:
    house = House(gateway, SLOW_ECHO)
    install_notes(house.site, "notes")
    house.deployment.start()
    children = {child["kind"] for child in json.loads(house.deployment.layout.status.read_bytes())["children"]}
    assert children == {"ledger", "worker", "engine"}
    assert house.consumers() == {}
    config = house.deployment.config
    before = config.read_text()
    config.write_text(before + enable("notes"))
    assert house.deployment.command("reload")["ok"]
    (process,) = wait_for(house.outbox, "the outbox after a reload")
    wait_for(lambda: house.consumers(), "the beginning")
    assert house.deployment.command("reload")["ok"]
    wait_for(lambda: house.outbox() and house.outbox()[0].pid != process.pid, "a new one after each")
    config.write_text(before)
    assert house.deployment.command("reload")["ok"]
    assert house.outbox() == []
    assert house.deployment.stop() == 0


async def test_no_outbox_outlives_its_supervisor(gateway: Any) -> None:
    house = House(gateway, enable("stuck") + SLOW_ECHO)
    install_notes(house.site, "stuck")
    (house.folder / "stuck.hang").touch()
    deployment = house.deployment
    deployment.start()
    wait_for(lambda: house.consumers(), "the beginning")
    load = Load(deployment.url, deployment.key())
    async with load.running():
        await load.progress(5)
    left = deployment.tree()
    deployment.process.kill()
    deployment.process.wait(timeout=10)
    assert psutil.wait_procs(left, timeout=PATIENCE_S)[1] == []
    (house.folder / "stuck.hang").unlink()
    deployment.start()
    wait_for(lambda: len(house.taken("stuck")) == len(house.records()), "what it had not taken")
    assert deployment.stop() == 0


async def test_consumers_are_set_back_on_and_forgotten(gateway: Any) -> None:
    house = House(gateway, enable("notes") + SLOW_ECHO)
    install_notes(house.site, "notes")
    deployment = house.deployment
    deployment.command("consumers", "reset", "notes", "--to", "beginning")
    deployment.start()
    load = Load(deployment.url, deployment.key())
    async with load.running():
        await load.progress(10)
    records = house.records()
    wait_for(lambda: len(house.taken("notes")) == len(records), "delivery")
    deployment.command("consumers", "reset", "notes", "--to", records[-2]["request_id"])
    wait_for(lambda: len(house.taken("notes")) == len(records) + 2, "the last two once more")
    deployment.environment["HEADGATE_ADMIN_KEY"] = deployment.admin_key
    there = ("--url", deployment.url)
    deployment.command("consumers", "reset", "notes", "--to", str(records[-1]["seq"]), *there)
    wait_for(lambda: len(house.taken("notes")) == len(records) + 3, "the last once more")
    (found,) = deployment.command("consumers", "list", *there)["consumers"]
    assert [found] == deployment.command("consumers", "list")["consumers"]
    assert (found["position"], found["behind"], found["oldest_at"], found["error"]) == (len(records), 0, None, "")
    deployment.command("consumers", "reset", "notes", "--to", "now", *there)
    done = run_plainly(deployment, "consumers", "reset", "notes", "--to", "req_nobody")
    assert (done.returncode, "to: expected beginning, now" in done.stderr) == (2, True), done.stderr
    for words in (("reset", "other", "--to", "now"), ("remove", "other", *there)):
        done = run_plainly(deployment, "consumers", *words)
        assert done.returncode == 2
        assert "there is no consumer 'other' (known: notes)" in done.stderr
    (process,) = house.outbox()
    os.kill(process.pid, signal.SIGSTOP)
    deployment.command("consumers", "remove", "notes", *there)
    assert house.consumers() == {}
    os.kill(process.pid, signal.SIGCONT)
    wait_for(lambda: house.consumers(), "a new beginning, as its plugin is still there")
    log = [(e["action"], e["target"]) for e in deployment.command("log")["entries"]]
    assert [entry for entry in log if entry[0].startswith("consumer.")] == [
        *[("consumer.reset", "notes")] * 4,
        ("consumer.remove", "notes"),
    ]
    assert deployment.stop() == 0
    assert deployment.audit()["ok"]


def run_plainly(deployment: Any, *words: str) -> Any:
    import subprocess
    import sys

    return subprocess.run(
        [sys.executable, "-m", "headgate_gateway.cli", *words, "--config", str(deployment.config)],
        capture_output=True, text=True, env={**os.environ, **deployment.environment}, timeout=60, check=False,
    )  # fmt: skip

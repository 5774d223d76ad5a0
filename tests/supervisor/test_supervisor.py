from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from headgate_gateway.config_checks import Problem
from headgate_gateway.config_file import ConfigError
from headgate_gateway.settings import Model, Price, Settings, read_snapshot
from headgate_gateway.supervisor.child import ChildFailed
from headgate_gateway.supervisor.data_folder import AlreadyServed, DataFolder, serving_pid
from headgate_gateway.supervisor.engines import same_engine
from headgate_gateway.supervisor.listening import AddressInUse, bind
from headgate_gateway.supervisor.status import read_status


async def test_starts_everything_and_ends_it_in_order(house: Any) -> None:
    house.start()
    status = await house.serving()
    assert [child.name for child in status.children] == ["ledger", "worker 0", "worker 1", "a/0"]
    assert house.child("a/0").device == "cpu"
    assert house.child("a/0").detail == "a fake"
    assert serving_pid(house.settings.layout) == os.getpid()
    pids = [child.pid for child in status.children]
    await house.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)
    last = read_status(house.settings.layout.status)
    assert last is not None
    assert last.phase == "stopping"
    assert {child.state for child in last.children} == {"stopped"}
    assert serving_pid(house.settings.layout) is None


async def test_relays_what_children_print(house: Any) -> None:
    house.start()
    await house.serving()
    assert {"ledger: ledger says hello", "worker 1: worker says hello", "a/0: engine says hello"} <= set(
        house.lines
    )


@pytest.mark.parametrize("name", ["ledger", "worker 0", "a/0"])
async def test_a_killed_child_is_started_again(house: Any, name: str) -> None:
    house.start()
    await house.serving()
    victim = house.child(name).pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    await house.until(lambda s: house.child(name).restarts == 1 and house.child(name).state == "ready")
    assert house.child(name).pid not in (None, victim)
    assert all(
        house.child(other).restarts == 0 for other in ("ledger", "worker 0", "worker 1", "a/0") if other != name
    )


async def test_a_worker_that_cannot_start_is_told(house: Any, settings: Settings) -> None:
    await _behaving(house, "worker", "die")
    with pytest.raises(ChildFailed, match=r"worker \d ended at its start \(exit code 3\)"):
        await house.task


async def test_a_worker_killed_at_its_start_is_started_again(house: Any) -> None:
    behaviour = await _behaving(house, "worker", "silent")
    await house.until(lambda s: sum(child.kind == "worker" and bool(child.pid) for child in s.children) == 2)
    behaviour.unlink()
    for name in ("worker 0", "worker 1"):
        os.kill(house.child(name).pid, signal.SIGKILL)
    await house.serving()
    assert house.child("worker 0").restarts == 1


async def test_an_engine_that_cannot_start_leaves_the_rest_serving(house: Any) -> None:
    await _behaving(house, "engine", "die")
    await house.until(lambda s: s.phase == "serving" and house.child("a/0").restarts >= 2)
    assert house.child("worker 0").state == "ready"


async def test_a_deaf_child_is_killed_after_its_grace(house: Any) -> None:
    await _behaving(house, "engine", "deaf")
    await house.serving()
    pid = house.child("a/0").pid
    assert pid is not None
    house.supervisor.stop()
    await house.until(lambda s: s.phase == "stopping" and house.child("worker 0").state == "stopped")
    house.supervisor.stop()  # the second time: hurry
    await house.task
    assert not psutil.pid_exists(pid)


async def test_can_be_stopped_while_it_starts(house: Any) -> None:
    await _behaving(house, "worker", "silent")
    await house.until(lambda s: any(child.name == "worker 0" and child.pid for child in s.children))
    house.supervisor.stop()
    await house.task


async def _behaving(house: Any, kind: str, how: str) -> Path:
    """Start with children that misbehave: the file that says so appears as soon as the run folder does."""
    folder = house.settings.layout.run_dir
    made = folder.stat().st_ino if folder.exists() else None
    house.start()
    while not folder.exists() or folder.stat().st_ino == made:
        await asyncio.sleep(0)
    behaviour: Path = folder / f"behave-{kind}"
    behaviour.write_text(how)
    return behaviour


async def test_a_second_supervisor_refuses_and_names_the_first(house: Any) -> None:
    house.start()
    await house.serving()
    with pytest.raises(AlreadyServed, match=f"served already, by process {os.getpid()}"):
        DataFolder.take(house.settings.layout)


async def test_a_used_port_is_an_error_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"server.port: 127.0.0.1:{port}: "):
            await bind("127.0.0.1", port)


async def test_secrets_are_made_once_and_private(house: Any) -> None:
    house.start()
    await house.serving()
    layout = house.settings.layout
    for path in (layout.pepper, layout.admin_key):
        assert path.stat().st_mode & 0o777 == 0o600
    before = layout.pepper.read_bytes(), layout.admin_key.read_bytes()
    await house.stop()
    again = type(house)(house.settings)
    again.start()
    await again.serving()
    assert (layout.pepper.read_bytes(), layout.admin_key.read_bytes()) == before
    await again.stop()


# -- reload


async def test_reload_moves_workers_and_keeps_unchanged_engines(house: Any, tmp_path: Path) -> None:
    house.start()
    await house.serving()
    kept, old_workers = house.child("a/0").pid, {house.child(f"worker {n}").pid for n in (0, 1)}
    changed = house.settings_in(tmp_path, house.local("b"), house.local("a", price={"input": "1"}))
    house.next_settings = lambda: changed
    house.supervisor.reload()
    status = await house.until(lambda s: s.reloads == 1)
    assert status.reload_error is None
    assert status.generation == 2
    assert house.child("a/0").pid == kept
    assert house.child("b/0").state == "ready"
    workers = {child.pid for child in status.children if child.kind == "worker"}
    assert len(workers) == 2
    assert not workers & old_workers
    snapshot = read_snapshot(house.settings.layout.settings)
    assert [model.id for model in snapshot.models] == ["b", "a"]
    assert (snapshot.slot("a"), snapshot.slot("b")) == (0, 1)


async def test_reload_replaces_a_changed_model_and_ends_a_removed_one(house: Any, tmp_path: Path) -> None:
    house.start()
    await house.serving()
    old = house.child("a/0").pid
    for turn, models in enumerate(
        [(house.local("a", device="cpu"), house.local("b")), (house.local("b"),)], start=1
    ):
        changed = house.settings_in(tmp_path, *models)
        house.next_settings = lambda changed=changed: changed
        house.supervisor.reload()
        await house.until(lambda s, turn=turn: s.reloads == turn)
        if turn == 1:
            assert house.child("a/0").pid not in (None, old)
    assert house.status is not None
    assert [child.name for child in house.status.engines] == ["b/0"]


async def test_a_reload_that_cannot_start_every_engine_leaves_none_behind(house: Any, tmp_path: Path) -> None:
    house.start()
    before = await house.serving()
    house.settings.layout.engine_spec(1, 1).mkdir()  # where the second replica's spec is to be written
    changed = house.settings_in(tmp_path, house.local("a"), house.local("b", replicas=2))
    house.next_settings = lambda: changed
    house.supervisor.reload()
    after = await house.until(lambda s: s.reloads == 1)
    assert after.reload_error is not None
    assert "Is a directory" in after.reload_error
    engines = [child for child in psutil.Process().children() if "engine" in child.cmdline()]
    assert [engine.pid for engine in engines] == [engine.pid for engine in before.engines]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        *(({"price": Price(input=Decimal(1))}, True), ({"aliases": ("c",)}, True), ({"timeout_s": 1.0}, True)),
        *(({"queue_requests": 2}, False), ({"queue_tokens": 2}, False), ({"options": {"delay_ms": 1}}, False)),
        *(({"replicas": 2}, False), ({"python": Path("/usr/bin/python3")}, False), ({"version": "2"}, False)),
    ],
)
def test_an_engine_stays_only_where_it_was_started_with_the_same(change: dict[str, Any], kept: bool) -> None:
    model = Model(id="a", task="chat", backend="echo")
    assert same_engine(model.model_copy(update=change), model) is kept


async def test_an_invalid_reload_changes_nothing(house: Any, tmp_path: Path) -> None:
    def refuse() -> Settings:
        raise ConfigError(Path("headgate.toml"), [Problem("models[0].id", "is required")])

    house.start()
    before = await house.serving()
    house.next_settings = refuse
    house.supervisor.reload()
    after = await house.until(lambda s: s.reloads == 1)
    assert after.reload_error == "headgate.toml: models[0].id: is required"
    assert after.children == before.children


async def test_a_reload_cannot_move_the_address(house: Any, tmp_path: Path) -> None:
    house.start()
    await house.serving()
    settings = house.settings_in(tmp_path)
    moved = settings.model_copy(update={"server": settings.server.model_copy(update={"port": 1})})
    house.next_settings = lambda: moved
    house.supervisor.reload()
    after = await house.until(lambda s: s.reloads == 1)
    assert after.reload_error is not None
    assert "server.port cannot change while serving" in after.reload_error


# -- as a process of its own

FAKE = str(Path(__file__).parent / "fake_child.py")
ENTRIES = {kind: (FAKE, kind) for kind in ("ledger", "worker", "engine")}
SERVE = f"""
import asyncio, sys
from pathlib import Path
from random import Random
from headgate_gateway.settings import read_snapshot
from headgate_gateway.supervisor.supervisor import Supervisor

settings = read_snapshot(Path(sys.argv[1]))
heavy = {{"torch", "litestar", "sqlalchemy", "uvicorn", "numpy", "onnxruntime"}} & sys.modules.keys()
assert not heavy, heavy

entries = {ENTRIES!r}

async def main():
    supervisor = Supervisor(settings, reread=None, write_line=lambda *_: None, random=Random(1), entries=entries)
    await supervisor.run()

asyncio.run(main())
"""


def _serve(tmp_path: Path, settings: Settings) -> subprocess.Popen[bytes]:
    given = tmp_path / "given.json"
    given.write_text(settings.model_dump_json())
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(SERVE), str(given)])


async def _serving(settings: Settings, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    while True:
        assert process.poll() is None, process.returncode
        status = read_status(settings.layout.status)
        if status and status.pid == process.pid and status.phase == "serving":
            return psutil.Process(process.pid).children(recursive=True)
        await asyncio.sleep(0.02)


async def test_sigterm_ends_it_with_exit_code_0(tmp_path: Path, settings: Settings) -> None:
    process = _serve(tmp_path, settings)
    children = await _serving(settings, process)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 20) == 0
    assert not any(child.is_running() for child in children)


async def test_nothing_outlives_a_killed_supervisor_and_the_next_one_starts(
    tmp_path: Path, settings: Settings
) -> None:
    process = _serve(tmp_path, settings)
    children = await _serving(settings, process)
    assert len(children) == 4
    process.kill()
    await asyncio.to_thread(process.wait, 20)
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
    assert not alive
    second = _serve(tmp_path, settings)
    await _serving(settings, second)
    second.terminate()
    assert await asyncio.to_thread(second.wait, 20) == 0

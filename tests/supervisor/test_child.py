"""One child: what it says of itself, and what becomes of one that says nothing any more."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from random import Random

import pytest
from headgate_gateway import parent
from headgate_gateway.backoff import Backoff
from headgate_gateway.supervisor.child import Child
from headgate_gateway.supervisor.programs import Program

FAKE = str(Path(__file__).parent / "fake_child.py")


async def test_a_child_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    (tmp_path / "behave-worker").write_text("hang")
    argv = (sys.executable, FAKE, "worker", "--settings", str(tmp_path / "settings.json"))
    changed = asyncio.Event()
    child = Child(
        Program("worker 0", "worker", argv),
        backoff=Backoff(Random(1)),
        write_line=lambda *_: None,
        on_change=changed.set,
        look_s=0.02,
    )
    child.start()
    await child.ready(30)
    hanging = child.pid
    (tmp_path / "behave-worker").unlink()  # the next one closes the pipe, and so is not watched
    while child.restarts == 0 or child.state != "ready":
        changed.clear()
        await asyncio.wait_for(changed.wait(), 30)
    assert child.pid not in (None, hanging)
    await child.stop(10)


async def test_a_child_beats_for_as_long_as_its_loop_comes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "BEAT_S", 0.01)
    heard, said = os.pipe()
    try:
        parent.announce(said)
        seen = b""
        while seen.count(b"\n") < 4:
            seen += await asyncio.to_thread(os.read, heard, 100)
        assert seen.startswith(b'{"ready": true}\n\n\n')
    finally:
        os.close(said)
        os.close(heard)

"""Loading and unloading by name: engines end and come back, everything else stays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest
from headgate_gateway.models.control import NobodyThere, ask
from headgate_gateway.supervisor.status import Status


def engines(status: Status) -> list[str]:
    return [engine.name for engine in status.engines]


async def test_a_model_is_unloaded_and_loaded_again(house: Any, tmp_path: Path) -> None:
    house.settings = house.settings_in(tmp_path, house.local("org/a", replicas=2), house.local("b"), workers=1)
    house = type(house)(house.settings)
    house.start()
    before = await house.serving()
    layout = house.settings.layout
    for _ in range(2):
        told = await ask(layout, "unload", "org/a")
        assert (told.code, told.message) == ("done", "org/a is unloaded")
    assert engines(await house.until(lambda s: len(s.engines) == 1)) == ["b/0"]
    for _ in range(2):
        assert (await ask(layout, "load", "org/a")).code == "done"
    after = await house.serving()
    assert sorted(engines(after)) == ["b/0", "org/a/0", "org/a/1"]
    kept = {child.name: child.pid for child in before.children if not child.name.startswith("org/a")}
    assert kept.items() <= {child.name: child.pid for child in after.children}.items()
    await house.stop()


async def test_what_cannot_be_loaded_says_why(house: Any) -> None:
    house.start()
    await house.serving()
    layout = house.settings.layout
    assert (await ask(layout, "load", "nobody")).code == "unknown"
    await ask(layout, "unload", "a")
    (layout.run_dir / "behave-engine").write_text("die")
    told = await ask(layout, "load", "a")
    assert (told.code, told.message) == ("failed", "a: its engine ended")


async def test_a_load_that_never_ends_can_be_given_up(house: Any) -> None:
    house.start()
    await house.serving()
    layout = house.settings.layout
    await ask(layout, "unload", "a")
    (layout.run_dir / "behave-engine").write_text("load for ever")
    loading = asyncio.create_task(ask(layout, "load", "a"))
    await house.until(lambda s: [engine.state for engine in s.engines] == ["loading"])
    assert (await ask(layout, "unload", "a")).code == "done"
    assert (await loading).code == "failed"


async def test_a_model_that_a_reload_removed_meanwhile_is_unknown(house: Any, tmp_path: Path) -> None:
    house.start()
    await house.serving()
    layout = house.settings.layout
    (layout.run_dir / "behave-engine").write_text("load for ever")
    house.next_settings = lambda: house.settings_in(tmp_path, house.local("b"))
    house.supervisor.reload()
    loading = await house.until(lambda s: any(engine.name == "b/0" and engine.pid for engine in s.engines))
    asked = [asyncio.create_task(ask(layout, action, "a")) for action in ("load", "unload")]
    while len(house.supervisor._engines.changing._waiters or ()) < 2:
        await asyncio.sleep(0.01)
    psutil.Process(next(engine.pid for engine in loading.engines if engine.name == "b/0")).kill()
    assert [(await told).code for told in asked] == ["unknown", "unknown"]


async def test_nobody_to_ask(house: Any) -> None:
    with pytest.raises(NobodyThere, match="nothing serves"):
        await ask(house.settings.layout, "load", "a")

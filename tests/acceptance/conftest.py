"""Gateways as an operator starts them, one or several to a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deployment import ECHO, Gateway


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Starts gateways: `gateway(config, workers=2)`; whatever is still running at the end is killed."""
    started: list[Gateway] = []

    def start(config: str = ECHO, *, workers: int = 1, wait: bool = True) -> Gateway:
        folder = tmp_path / f"gateway{len(started)}"
        folder.mkdir()
        made = Gateway(folder, config, workers=workers)
        started.append(made)
        if wait:
            made.start()
        return made

    yield start
    for made in started:
        made.kill_everything()

"""Orders to die: told apart, refused when they make no sense, carried out at the passing that they name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from headgate_gateway import crashpoints

SCRIPT = """
import sys
from headgate_gateway import crashpoints
crashpoints.arm(sys.argv[1])
for number in range(1, 4):
    crashpoints.reach("ledger.before_commit")
    crashpoints.reach("worker.mid_stream")
    print(number, flush=True)
"""


def run(order: str, path: Path | None = None) -> tuple[int, str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, order],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("order", "code", "printed"),
    [
        ("", 0, "123"),
        ("ledger.before_commit:1", -signal.SIGKILL, ""),
        ("worker.mid_stream:3", -signal.SIGKILL, "12"),
        ("ledger.after_commit:1", 0, "123"),
    ],
)
def test_the_nth_passing_of_the_point_kills(order: str, code: int, printed: str) -> None:
    assert run(order) == (code, printed)


@pytest.mark.parametrize(
    "order", ["nowhere:1", "ledger.before_commit", "ledger.before_commit:0", "worker.mid_stream:x"]
)
def test_an_order_that_makes_no_sense_is_refused_with_what_is_known(order: str) -> None:
    with pytest.raises(ValueError, match=r"POINT one of ledger\.before_commit"):
        crashpoints.arm(order)


def test_what_is_released_cannot_be_made_to_die(tmp_path: Path) -> None:
    package = Path(crashpoints.__file__).parent
    distribution = package.parents[1]
    manifest = tomllib.loads((distribution / "pyproject.toml").read_text())
    wheel = manifest["tool"]["hatch"]["build"]["targets"]["wheel"]
    left_out = [distribution / path for path in wheel.get("exclude", [])]
    assert wheel["packages"] == ["src/headgate_gateway"]
    shutil.copytree(
        package,
        tmp_path / "headgate_gateway",
        ignore=lambda folder, names: [name for name in names if Path(folder) / name in left_out],
    )
    assert run("ledger.before_commit:1", tmp_path) == (0, "123")

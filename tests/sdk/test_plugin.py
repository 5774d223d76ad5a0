"""The pytest fixture, as a user's test suite meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TEST = """
def test_fake(fake_gateway):
    client = fake_gateway.client()
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
    assert answer.text == "hi"
"""


def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(TEST)
    plugins = ["-p", "no:headgate", "-p", "headgate.testing.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, "test_user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets have short paths, which pytest's own does not always give."""
    with tempfile.TemporaryDirectory(prefix="hg-") as folder:
        yield Path(folder)

"""Generate `headgate._sync` from `headgate._async`: tokens are replaced, nothing else is understood.

`python sdk/scripts/unasync.py` writes; `--check` exits 1 and names the file that differs. A replacement that no
file uses is an error, so the list cannot rot.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "headgate"
SOURCE, TARGET = PACKAGE / "_async", PACKAGE / "_sync"
BY_HAND = {"colour.py", "__init__.py"}
NOTICE = "# Generated from headgate/_async/{name} by sdk/scripts/unasync.py. Do not edit.\n"

REPLACEMENTS = [
    (r"async def", "def"),
    (r"async for", "for"),
    (r"async with", "with"),
    (r"\bawait ", ""),
    (r"\baclose\b", "close"),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\b__aiter__\b", "__iter__"),
    (r"\b__anext__\b", "__next__"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bAwaitable\[([^\[\]]*(?:\[[^\[\]]*\])?)\]", r"\1"),
    (r"\bAwaitable, ", ""),
    (r"\bAsyncGenerator\[bytes, None\]", "Generator[bytes, None, None]"),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\bheadgate\._async\b", "headgate._sync"),
]


def translate(text: str, used: set[str]) -> str:
    """One module's text in the other colour."""
    for pattern, replacement in REPLACEMENTS:
        text, count = re.subn(pattern, replacement, text)
        if count:
            used.add(pattern)
    return text


def formatted(text: str, name: str) -> str:
    """Text as ruff leaves it: imports sorted, `yield from` where only the async colour cannot, lines wrapped."""
    ruff = str(Path(sys.executable).parent / "ruff")
    target = str(TARGET / name)
    for command in (
        ["check", "--select", "I,UP028", "--fix", "--unsafe-fixes", "--quiet"],
        ["format", "--quiet"],
    ):
        done = subprocess.run(  # noqa: S603  our own tool on our own text
            [ruff, *command, "--stdin-filename", target, "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        text = done.stdout
    return text


def main() -> int:
    """Write or check; returns the exit code."""
    check = "--check" in sys.argv[1:]
    used: set[str] = set()
    wanted: dict[Path, str] = {}
    for source in sorted(SOURCE.glob("*.py")):
        if source.name not in BY_HAND:
            text = NOTICE.format(name=source.name) + translate(source.read_text(), used)
            wanted[TARGET / source.name] = formatted(text, source.name)
    unused = [pattern for pattern, _ in REPLACEMENTS if pattern not in used]
    if unused:
        print(f"replacements that no file uses: {unused}", file=sys.stderr)  # noqa: T201
        return 1
    stale = [path for path in TARGET.glob("*.py") if path.name not in BY_HAND and path not in wanted]
    different = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if check:
        for path in [*different, *stale]:
            print(f"{path}: not what `python sdk/scripts/unasync.py` makes", file=sys.stderr)  # noqa: T201
        return 1 if different or stale else 0
    for path in stale:
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

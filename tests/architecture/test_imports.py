"""Who may import whom, and what must stay out of whose memory."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def imports(path: Path, modules: set[str]) -> set[str]:
    """Modules of ours that one needs to be read or understood; not those that a function imports when it runs."""
    tree = ast.parse(path.read_text())
    outside = (node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    found = set()
    for statement in outside:
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inside & modules or {node.module}
    return found & modules


def test_modules_of_the_gateway_form_no_circle() -> None:
    source = ROOT / "gateway" / "src"
    files = {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (source / "headgate_gateway").rglob("*.py")
    }
    needs = {name: imports(path, set(files)) for name, path in files.items()}
    assert sum(map(len, needs.values())) > len(files)
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


SERVERS = ("litestar", "sqlalchemy", "alembic", "uvicorn", "pyreqwest")
HEAVY = ("torch", "onnxruntime", "numpy", "transformers", *SERVERS)
EVERY_BACKEND = "load_backends(['echo', 'onnx', 'torch', 'openai'])"


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import headgate", ("litestar", "msgspec", "torch", "pluggy", "headgate_plugin_api")),
        ("from headgate_gateway.cli.application import application", HEAVY),
        ("from headgate_gateway.supervisor.supervisor import Supervisor", HEAVY),
        (
            f"from headgate_gateway.plugins import load_backends; {EVERY_BACKEND}",
            HEAVY,
        ),
        (
            "import headgate_engine.__main__",
            (*SERVERS, "headgate_gateway"),
        ),
        ("import headgate_plugin_api", HEAVY),
    ],
)
def test_what_is_not_imported(code: str, forbidden: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nfound = {forbidden!r}\nprint([n for n in found if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_light() -> None:
    code = (
        "import sys\nsys.argv = ['headgate', '--help']\nfrom headgate_gateway.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(' '.join(n for n in sys.modules if n.startswith('headgate')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = done.stderr.split()
    assert "serve" in done.stdout
    assert len(ours) < 40, ours

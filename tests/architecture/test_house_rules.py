"""Rules of the house that a linter does not know: sizes, names, manifests, public names."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in (
        "sdk/src",
        "gateway/src",
        *(f"plugins/{p.name}/src" for p in (ROOT / "plugins").iterdir() if p.is_dir()),
    )
    for path in (ROOT / folder).rglob("*.py")
    if "migrations" not in path.parts
]
GATEWAY = [path for path in SOURCES if "headgate_gateway" in path.parts]
PYPROJECTS = [
    ROOT / "sdk/pyproject.toml",
    ROOT / "gateway/pyproject.toml",
    *(ROOT / "plugins").glob("*/pyproject.toml"),
]
MAX_MODULE = 500
"""Lines. The aim is about 400; a module over this has more than one thing in it."""
MAX_FUNCTION = 70
"""Lines, docstring and signature not counted. The aim is 50."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_modules_are_rooms_not_halls() -> None:
    trees = {relative(path): ast.parse(path.read_text()) for path in SOURCES}
    assert [name for name in trees if len((ROOT / name).read_text().splitlines()) > MAX_MODULE] == []
    long = [
        f"{name}: {function.name}"
        for name, tree in trees.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and length(function) > MAX_FUNCTION
    ]
    assert long == []


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_modules_say_what_lives_there() -> None:
    assert [relative(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))] == []
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [relative(path) for path in SOURCES if path.stem in vague] == []


def test_the_environment_is_read_in_settings_only() -> None:
    reads = [path for path in GATEWAY if re.search(r"os\.environ|getenv", path.read_text())]
    assert [path.name for path in reads] == ["settings.py"]


def test_status_numbers_stay_in_http() -> None:
    """Those that can be nothing else: 200 and 500 are also counts, and 448 is a file's mode."""
    numbers = frozenset({*range(401, 432), 502, 503, 504})
    named = {
        relative(path)
        for path in GATEWAY
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value in numbers
    }
    assert named == {"gateway/src/headgate_gateway/http/problems.py"}


@pytest.mark.parametrize("path", PYPROJECTS, ids=relative)
def test_distributions_stand_alone(path: Path) -> None:
    project = tomllib.loads(path.read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    for requirement in [*project["dependencies"], *(item for extra in extras for item in extra)]:
        if requirement.startswith("headgate"):
            assert ">=" in requirement or "[" in requirement.split(">")[0], f"{requirement} has no lower bound"
            assert "<" in requirement, f"{requirement} has no upper bound"
    assert project["requires-python"] == ">=3.11"
    assert (path.parent / project["readme"]).stat().st_size > 0
    package = next((path.parent / "src").iterdir())
    assert (package / "py.typed").exists()


@pytest.mark.parametrize("name", ["headgate", "headgate_plugin_api", "headgate_dialects", "headgate_gateway.cli"])
def test_public_names_are_listed_once_and_exist(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(listed) == len(set(listed))
    assert sorted(listed, key=order) == list(listed), f"{name}.__all__ is not sorted"
    assert all(hasattr(module, each) for each in listed)


def order(name: str) -> tuple[int, str]:
    """Constants, classes, functions, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_the_plugin_api_exports_everything_public() -> None:
    module = importlib.import_module("headgate_plugin_api")
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not hasattr(value, "__path__")
    }
    modules = {name for name in public if type(getattr(module, name)).__name__ == "module"}
    assert public - modules == set(module.__all__) - modules

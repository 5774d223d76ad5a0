"""The public surface: twins that cannot drift, names that load lazily, no HTTP library in any signature."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import headgate
import headgate._async
import headgate._sync
import headgate.errors
import headgate.types
import pytest

ROOT = Path(__file__).parents[2]


def classes(package: ModuleType) -> dict[str, type]:
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found |= {
            name: value
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        }
    return found


def members(cls: type) -> dict[str, Any]:
    hidden = {
        "__aenter__": "__enter__",
        "__aexit__": "__exit__",
        "__aiter__": "__iter__",
        "__anext__": "__next__",
    }
    return {hidden.get(name, name): value for name, value in vars(cls).items() if callable(value)}


def test_twins_have_the_same_methods_and_parameters() -> None:
    asynchronous, synchronous = classes(headgate._async), classes(headgate._sync)
    pairs = [(cls, synchronous[name.removeprefix("Async")]) for name, cls in asynchronous.items()]
    assert len(pairs) == len(synchronous) > 20
    compared = 0
    for left, right in pairs:
        mine, theirs = members(left), members(right)
        assert mine.keys() == theirs.keys(), left
        for name, method in mine.items():
            if not inspect.isfunction(method):
                continue
            one, other = inspect.signature(method), inspect.signature(theirs[name])
            assert [(p.name, p.kind, p.default) for p in one.parameters.values()] == [
                (p.name, p.kind, p.default) for p in other.parameters.values()
            ], (left, name)
            assert not inspect.iscoroutinefunction(theirs[name])
            compared += 1
    assert compared > 80


def test_the_sync_colour_is_what_the_generator_makes() -> None:
    script = ROOT / "sdk" / "scripts" / "unasync.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_is_every_public_name() -> None:
    assert headgate.__all__ == sorted(headgate.__all__)
    assert set(headgate.__all__) == {*headgate._HOMES, "__version__"}
    for name in headgate.__all__:
        assert getattr(headgate, name) is not None
    assert dir(headgate) == sorted(headgate.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        headgate.Nope  # noqa: B018
    for name in headgate.types.__all__:
        assert hasattr(headgate.types, name)


def test_every_error_is_public_and_in_the_tree() -> None:
    tree = headgate.errors.__doc__ or ""
    for name, value in vars(headgate.errors).items():
        if inspect.isclass(value) and issubclass(value, headgate.HeadgateError):
            assert name in headgate.__all__
            assert name in tree


def test_public_signatures_name_no_http_library() -> None:
    checked = 0
    for package in (headgate._async, headgate._sync, headgate.types):
        for name, cls in {**classes(package)}.items():
            for method in vars(cls).values():
                function = method.fget if isinstance(method, property) else method
                text = str(getattr(function, "__annotations__", ""))
                assert "httpx" not in text, (name, method)
                assert "pyreqwest" not in text, (name, method)
                checked += 1
    assert checked > 200


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_next_to_nothing() -> None:
    loaded = loaded_after("import headgate; import headgate.errors")
    assert not loaded & {"httpx", "pydantic", "tenacity", "pyreqwest", "asyncio", "numpy"}
    plugin = loaded_after("import headgate.testing.plugin")
    assert "headgate" in plugin


def test_a_client_loads_nothing_of_the_server() -> None:
    loaded = loaded_after(
        "import headgate; headgate.Headgate(api_key='x').chat; headgate.AsyncHeadgate(api_key='x')"
    )
    assert not loaded & {
        "litestar",
        "msgspec",
        "torch",
        "pluggy",
        "headgate_gateway",
        "numpy",
        "pandas",
        "openai",
    }
    assert "httpx" not in loaded, "the fast transport needs no httpx"


def test_modules_stay_small() -> None:
    for path in (ROOT / "sdk" / "src").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path

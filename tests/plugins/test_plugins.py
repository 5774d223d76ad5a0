from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType

import pytest
from headgate_gateway import plugins
from headgate_gateway.plugins import PluginError, UnknownBackend, installed, load_backends, load_prices
from headgate_gateway.price_list import configured_prices
from headgate_gateway.settings import Settings

BACKEND = """
from types import SimpleNamespace
from headgate_plugin_api import hookimpl
HEADGATE_API = {api}
@hookimpl
def headgate_register_backends(register):
    register(SimpleNamespace(name="{name}"))
"""


def offer(monkeypatch: pytest.MonkeyPatch, **sources: str) -> None:
    """Install plugins for this test: modules with this source, under these entry-point names."""
    points = []
    for name, source in sources.items():
        module = ModuleType(f"fake_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(source, module.__dict__)
        points.append(EntryPoint(name, module.__name__, "headgate.plugins"))
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(points).select(group=group))


def test_lists_what_is_installed_without_importing_it() -> None:
    names = [plugin.name for plugin in installed()]
    assert names == ["echo", "onnx", "openai", "torch"]
    code = (
        "import sys; from headgate_gateway.plugins import installed, load_backends;"
        "installed(); load_backends(['echo']);"
        "assert not {'headgate_onnx', 'headgate_torch', 'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loads_exactly_what_is_named() -> None:
    assert list(load_backends(["echo"])) == ["echo"]
    assert load_backends([]) == {}


def test_an_unknown_name_lists_the_installed_ones_and_the_pip_line() -> None:
    with pytest.raises(UnknownBackend, match=r'installed: echo, onnx, openai, torch.*did you mean "torch"'):
        load_backends(["troch"])
    with pytest.raises(UnknownBackend, match="pip install headgate-vllm"):
        load_backends(["vllm"])


def test_another_api_version_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, new=BACKEND.format(api=7, name="new"))
    with pytest.raises(PluginError, match="built for plugin API 7, this gateway has 1"):
        load_backends(["new"])


def test_a_plugin_must_bring_what_its_name_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, good=BACKEND.format(api=1, name="good"), liar=BACKEND.format(api=1, name="other"))
    assert load_backends(["good"])["good"].name == "good"
    with pytest.raises(PluginError, match=r'the plugin "liar" .* brings no backend of that name'):
        load_backends(["liar"])


def test_a_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = EntryPoints([EntryPoint("broken", "module_that_is_nowhere", "headgate.plugins")])
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.raises(PluginError, match=r'"broken" .module_that_is_nowhere. cannot be imported'):
        load_backends(["broken"])


PRICES = """
from headgate_plugin_api import hookimpl
HEADGATE_API = 1
@hookimpl
def headgate_register_prices(register):
    for model, rates in {prices}.items():
        register(model, rates)
"""


def test_a_model_without_a_price_costs_what_the_plugin_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id, else by what all its targets call it; the config's own price goes first."""
    listed = {"gpt": {"output": "1"}, "big": {"output": "2"}, "mine": {"output": "3"}}
    offer(
        monkeypatch,
        shop=PRICES.format(prices=listed),
        twin=PRICES.format(prices={"gpt": {"output": "9"}, "late": {"input": "1"}}),
    )
    models = [
        {"id": "gpt", "task": "chat", "backend": "shop"},
        {"id": "alias", "task": "chat", "targets": [{"backend": "shop", "model": "big", "base_url": "http://h"}]},
        {
            "id": "both",
            "task": "chat",
            "targets": [{"backend": "shop", "model": name} for name in ("big", "gpt")],
        },
        {"id": "mine", "task": "chat", "backend": "shop", "price": {"output": "7"}},
        {"id": "late", "task": "chat", "backend": "shop"},
        {"id": "none", "task": "chat", "backend": "shop"},
    ]
    found = configured_prices(Settings.model_validate({"models": models, "plugins": {"enable": ["twin"]}}))
    assert dict(found.models) == {
        "gpt": {"output": "1"}, "alias": {"output": "2"}, "both": None, "mine": {"output": "7"},
        "late": {"input": "1"}, "none": None,
    }  # fmt: skip
    assert found.defaults == {"gpt", "alias", "late"}


def test_a_table_with_a_price_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, shop=PRICES.format(prices={"gpt": {"inptu": "1"}}))
    with pytest.raises(
        PluginError, match=r"\"shop\" states a price of 'gpt' that is none: 'inptu' is not a rate"
    ):
        load_prices(["shop"])

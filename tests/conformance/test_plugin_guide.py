"""The guide's plugin works as printed, and the conformance suite finds what is wrong with spoiled copies."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from headgate_plugin_api import hookspecs

GUIDE = Path(__file__).parents[2] / "docs" / "plugins.md"

SPOILED = [
    ("forbid_unknown_fields=True", "forbid_unknown_fields=False", "test_unknown_options_are_refused"),
    ('kind = "engine"', 'kind = "remote"', "test_the_backend_describes_itself"),
    (
        "for item in items]\n\n    def fin",
        "for item in items][::-1]\n\n    def fin",
        "test_company_changes_no_answer",
    ),
    ('path=f"input[{index}]"', "path=None", "test_a_bad_request_is_refused_by_name"),
    ('path=f"input[{index}]"', 'path="input"', "test_a_bad_request_is_refused_by_name"),
    (
        "UsageReport(usage=Usage(input=sum(item.tokens for item in items))),\n",
        "",
        "test_every_answer_is_complete",
    ),
    ("scores=tuple((1 - loud, loud)", "scores=tuple((loud,)", "test_every_answer_is_complete"),
    ("return None  #", "return Usage(input=1)  #", "test_the_bound_is_never_too_low"),
    ("index=index, tokens", "index=0, tokens", "test_items_say_what_they_cost"),
    ("/ len(item.data) for", "/ len(items) for", "test_company_changes_no_answer"),
]


def blocks() -> list[str]:
    """The guide's Python blocks: the plugin, its test, and a fragment."""
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The suite's failures, by module: the plugin as printed is `shout`, its spoiled copies are `shout_N`."""
    folder = tmp_path_factory.mktemp("guide")
    plugin, test, _ = blocks()
    modules = {"shout": plugin}
    for number, (right, wrong, _) in enumerate(SPOILED):
        assert right in plugin
        modules[f"shout_{number}"] = plugin.replace(right, wrong)
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
        (folder / f"test_{name}.py").write_text(test.replace("headgate_shout", name))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "--tb=no", "."]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    found: dict[str, set[str]] = {}
    for outcome, name, check in re.findall(
        r"^(\w+) test_(\w+)\.py::TestShout::(\w+)", result.stdout, re.MULTILINE
    ):
        failed = found.setdefault(name, set())
        if outcome != "PASSED":
            failed.add(check)
    assert set(found) == set(modules), result.stdout
    return found


def test_the_guides_plugin_passes_the_suite(verdicts: dict[str, set[str]]) -> None:
    assert verdicts["shout"] == set()


@pytest.mark.parametrize("number", range(len(SPOILED)), ids=[spoiled[1].strip() for spoiled in SPOILED])
def test_the_suite_finds(verdicts: dict[str, set[str]], number: int) -> None:
    assert SPOILED[number][2] in verdicts[f"shout_{number}"]


def test_every_hook_has_its_heading_with_its_arguments() -> None:
    guide = GUIDE.read_text()
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("headgate_")}
    assert hooks
    for name, hook in hooks.items():
        arguments = ", ".join(inspect.signature(hook).parameters)
        assert f"### {name}({arguments})\n" in guide

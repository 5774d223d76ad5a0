"""What can be set or typed is documented."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from headgate_gateway.cli.application import application
from headgate_gateway.config_file import _NOT_IN_FILES, _section_in, read_config
from headgate_gateway.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"


def settings_named(section: Any = Settings, prefix: str = "") -> list[str]:
    """Every setting as the docs name it: `server.port`, `models.id`, `price.input`, `targets.weight`."""
    names = []
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if prefix == "" and name in _NOT_IN_FILES:
            continue
        if prefix:
            names.append(f"{prefix}.{name}")
        if inner is not None:
            names += settings_named(inner, name)
    return names


@pytest.mark.parametrize("name", settings_named())
def test_every_setting_has_a_row(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "config.md").read_text()


def test_no_row_names_a_setting_that_is_gone() -> None:
    lines = (DOCS / "config.md").read_text().splitlines()
    rows = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert sorted(rows) == sorted(settings_named())


def commands(group: Any, prefix: str = "headgate") -> list[str]:
    names = []
    for name, command in group.commands.items():
        names += commands(command, f"{prefix} {name}") if hasattr(command, "commands") else [f"{prefix} {name}"]
    return names


def test_every_command_has_a_row() -> None:
    text = (DOCS / "cli.md").read_text()
    root = typer.main.get_command(application)
    missing = [name for name in commands(root) if f"| `{name}` |" not in text]
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `headgate")]
    assert missing == []
    assert sorted(rows) == sorted(commands(root))


def test_the_readme_has_configs_that_are_read(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "headgate.toml").write_text(block)
        assert read_config(tmp_path / "headgate.toml").settings.models


def test_the_readme_has_commands_and_pages_that_exist() -> None:
    text = README.read_text()
    known = {tuple(name.split()): name for name in commands(typer.main.get_command(application))}
    typed = [shlex.split(line, comments=True) for line in re.findall(r"^\$ (headgate .*)", text, re.MULTILINE)]
    assert typed
    assert [words for words in typed if not {tuple(words[:2]), tuple(words[:3])} & known.keys()] == []
    pages = re.findall(r"\]\(([^):#]+)\)", text)
    assert pages
    assert [page for page in pages if not (ROOT / page).exists()] == []

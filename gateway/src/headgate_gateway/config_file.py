"""Reading `headgate.toml`: from text to checked settings, and errors that say where and what was expected.

Every problem is found, not just the first; each names its field by path (`models[1].price.input`), its line
where the file shows it, and for an unknown key the nearest one that exists.

May import settings and config_checks.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args, get_origin

from pydantic import ValidationError

from headgate_gateway.config_checks import Problem, consistency
from headgate_gateway.settings import Model, Section, Settings

MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
_SECRET_FIELDS: Final = frozenset({"api_key", "pepper"})
_NOT_IN_FILES: Final = frozenset({"engine_slots"})


class ConfigError(Exception):
    """A config cannot be used.

    Attributes:
        file: The config, as the user named it.
        problems: What is wrong, in the order of the file's fields.
    """

    def __init__(self, file: Path, problems: Sequence[Problem], lines: Mapping[str, int] | None = None) -> None:
        self.file = file
        self.problems = tuple(problems)
        self._lines = lines or {}
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line for each problem: `file:line: field: what is wrong`."""
        told: list[str] = []
        for problem in self.problems:
            line = line_of(self._lines, problem.path)
            where = f"{self.file}:{line}" if line else str(self.file)
            told.append(
                f"{where}: {problem.path}: {problem.message}" if problem.path else f"{where}: {problem.message}"
            )
        return told


@dataclass(frozen=True)
class ConfigFile:
    """A config as it was read: the settings, and where each field stands."""

    path: Path
    settings: Settings
    lines: Mapping[str, int]

    def error(self, problems: Sequence[Problem]) -> ConfigError:
        """An error about this file, with line numbers."""
        return ConfigError(self.path, problems, self.lines)


def read_config(path: Path) -> ConfigFile:
    """Read and check a config; relative paths in it are relative to its folder.

    Raises:
        ConfigError: It cannot be read, is not TOML, or says something that is not allowed.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(path, [Problem("", f"the file is longer than {MAX_CONFIG_BYTES} bytes")])
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text, parse_float=Decimal)
    except FileNotFoundError:
        raise ConfigError(path, [Problem("", "no such file; write one with `headgate init`")]) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(path, [Problem("", str(error))]) from error
    except RecursionError:
        raise ConfigError(path, [Problem("", "values are nested too deeply")]) from None
    lines = field_lines(text)
    try:
        settings = Settings.model_validate(_floats_outside_prices(document))
    except ValidationError as error:
        raise ConfigError(path, [_explain(detail) for detail in error.errors(include_url=False)], lines) from None
    problems = [Problem(name, _unknown(Settings, name)) for name in _NOT_IN_FILES & document.keys()]
    problems += consistency(settings)
    if problems:
        raise ConfigError(path, problems, lines)
    return ConfigFile(path, resolve_paths(settings, path.absolute().parent), lines)


def resolve_paths(settings: Settings, folder: Path) -> Settings:
    """The same settings with every path absolute, taken from `folder` where it was relative."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    server = settings.server
    moved = {
        "data_dir": folder / server.data_dir.expanduser(),
        "tls_cert": absolute(server.tls_cert),
        "tls_key": absolute(server.tls_key),
        "pepper": _secret_path(server.pepper, folder),
    }
    models: list[Model] = []
    for model in settings.models:
        targets = tuple(
            target.model_copy(update={"api_key": _secret_path(target.api_key, folder)})
            for target in model.targets
        )
        update = {
            "source": _source_path(model.source, folder),
            "python": absolute(model.python),
            "targets": targets,
        }
        models.append(model.model_copy(update=update))
    return settings.model_copy(
        update={
            "server": server.model_copy(update=moved),
            "store": settings.store.model_copy(update={"url": _secret_path(settings.store.url, folder)}),
            "models": tuple(models),
        }
    )


def _secret_path(reference: str | None, folder: Path) -> str | None:
    if reference is None or not reference.startswith("file:"):
        return reference
    return f"file:{folder / Path(reference.removeprefix('file:')).expanduser()}"


def _source_path(source: str | None, folder: Path) -> str | None:
    """A source is a path unless it has a scheme (`hf://org/name`)."""
    return source if source is None or "://" in source else str(folder / Path(source).expanduser())


Read: TypeAlias = "dict[str, Read] | list[Read] | Decimal | str | int | float | datetime | date | time"
"""What a value of TOML can be."""


def _floats_outside_prices(value: Read, key: str = "") -> Any:
    """Numbers with a point were read as Decimal so that prices stay exact; everything else wants float."""
    if isinstance(value, dict):
        return {
            name: _floats_outside_prices(item, key if key == "price" else name) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_floats_outside_prices(item, key) for item in value]
    return float(value) if isinstance(value, Decimal) and key != "price" else value


# -- saying what is wrong


_EXPECTED: Final = {
    "tuple_type": "an array",
    "model_type": "a table",
    "dict_type": "a table",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
}
"""Kinds of values in the words of TOML."""


def _explain(detail: Any) -> Problem:
    location: tuple[str | int, ...] = detail["loc"]
    path = path_of(location)
    name = str(location[-1]) if location else ""
    if detail["type"] == "extra_forbidden":
        return Problem(path, _unknown(_section_at(location[:-1]), name))
    if detail["type"] == "missing":
        return Problem(path, "is required")
    expected = _EXPECTED.get(detail["type"])
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    message = f"expected {expected}" if expected else message[:1].lower() + message[1:]
    if name in _SECRET_FIELDS:
        return Problem(path, message)
    return Problem(path, f"{message}, not {_shown(detail['input'])}")


def _unknown(section: type[Section] | None, name: str) -> str:
    known = sorted(section.model_fields.keys() - _NOT_IN_FILES) if section else []
    return nearest("unknown key", name, known)


def nearest(what: str, name: str, known: Sequence[str]) -> str:
    """`unknown key; did you mean "port"?`, or what exists when nothing is near."""
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f'{what}; did you mean "{close[0]}"?'
    return f"{what}; expected one of {', '.join(known)}" if known else what


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float | Decimal):
        text = f'"{value}"' if isinstance(value, str) else str(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    if isinstance(value, dict):
        return "a table"
    return "an array" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def path_of(location: Sequence[str | int]) -> str:
    """`("models", 1, "price")` as people write it: `models[1].price`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _section_at(location: Sequence[str | int]) -> type[Section] | None:
    """The section that a location in the config points at."""
    section: type[Section] | None = Settings
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section else None
        section = _section_in(field.annotation) if field else None
    return section


def _section_in(annotation: Any) -> type[Section] | None:
    """The section class inside `X | None` or `tuple[X, ...]`."""
    if get_origin(annotation) is None:
        return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
    return next((found for argument in get_args(annotation) if (found := _section_in(argument))), None)


# -- where a field stands

_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\- ]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"^\s*([A-Za-z0-9_.-]+)\s*=")
_QUOTES: Final = re.compile(r"\"\"\"|'''")


def field_lines(text: str) -> dict[str, int]:
    """Line numbers of tables and of the keys written directly in them, by path.

    tomllib tells no positions, so this reads just enough: headers, array tables, plain keys, multi-line strings.
    A field it does not know (inside an inline table) is found at its nearest parent by `line_of`.
    """
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    in_string = False
    for number, line in enumerate(text.splitlines(), start=1):
        was_in_string = in_string
        if len(_QUOTES.findall(line)) % 2:
            in_string = not in_string
        if was_in_string:
            continue
        if header := _HEADER.match(line):
            table = _table_path(header[2].replace(" ", ""), counts, is_array=header[1] == "[[")
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault(f"{table}.{key[1]}" if table else key[1], number)
    return lines


def _table_path(name: str, counts: dict[str, int], *, is_array: bool) -> str:
    """The path of a header: each array table on the way stands for its last element."""
    path = ""
    parts = name.split(".")
    for position, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if is_array and position == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path += f"[{counts[path]}]"
    return path


def line_of(lines: Mapping[str, int], path: str) -> int | None:
    """The line of a field, or of the nearest table around it."""
    while path:
        if path in lines:
            return lines[path]
        path = re.sub(r"(\.[^.\[\]]+|\[\d+\]|^[^.\[\]]+)$", "", path)
    return None

"""Write docs/sdk.md, the client's reference, from its docstrings.

`python sdk/scripts/reference.py` writes; `--check` exits 1 when the page is not what the docstrings say. The
synchronous colour is shown; the asynchronous one has the same names and parameters, with `await`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import headgate
import headgate.types

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sdk.md"

HEAD = """<!-- Generated from the docstrings by sdk/scripts/reference.py. Do not edit; run `make gen`. -->

# The client's reference

[sdk/README.md](../sdk/README.md) is the place to begin. `AsyncHeadgate` has the same names and parameters as
`Headgate`, with `await`, `async for` and `async with`.
"""


def page() -> str:
    """The whole page."""
    client = headgate.Headgate(api_key="none", base_url="http://127.0.0.1:1", transport="httpx")
    parts = [HEAD, "## `Headgate`\n", text_of(headgate.Headgate), text_of(headgate.Headgate.__init__)]
    parts += members(client, "client")
    names = sorted(set(headgate.__all__) - {"Headgate", "AsyncHeadgate", "__version__"})
    parts += ["## Errors and other names\n", *classes(headgate, names)]
    parts += [
        "## `headgate.types`: parameters and answers\n",
        *classes(headgate.types, sorted(headgate.types.__all__)),
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def classes(module: Any, names: list[str]) -> Iterator[str]:
    """The classes of a module by name, with what they derive from of ours."""
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value):
            bases = ", ".join(base.__name__ for base in value.__bases__ if base.__module__.startswith("headgate"))
            yield f"### `{name}`" + (f" ({bases})" if bases else "") + "\n"
            yield text_of(value)


def members(owner: object, path: str) -> Iterator[str]:
    """What an object offers: its methods first, then the resources in it, each with its own."""
    names = [name for name in (*vars(type(owner)), *vars(owner)) if not name.startswith("_")]
    found = {name: getattr(owner, name) for name in names}
    for name, value in found.items():
        if inspect.ismethod(value):
            yield f"### `{path}.{name}{signature(value)}`\n"
            yield text_of(value)
    for name, value in found.items():
        if type(value).__module__.startswith("headgate._sync"):
            yield f"## `{path}.{name}`\n"
            yield text_of(type(value))
            yield from members(value, f"{path}.{name}")


class Bare(str):
    """An annotation as it is written in the source."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Without quotes."""
        return str(self)


def signature(function: Any) -> str:
    """Parameters as they are written; a default that is not a plain value is shown as `...`."""
    given = inspect.signature(function)
    plain = (str, int, float, bool, type(None), type(inspect.Parameter.empty))
    parameters = [
        parameter.replace(
            annotation=Bare(parameter.annotation),
            default=parameter.default if isinstance(parameter.default, plain) else Bare("..."),
        )
        for parameter in given.parameters.values()
    ]
    shown = given.replace(parameters=parameters, return_annotation=Bare(given.return_annotation))
    return str(shown).replace(" -> None", "")


def text_of(value: Any) -> str:
    """A docstring in Markdown: sections become lists."""
    lines = (inspect.getdoc(value) or "").splitlines()
    shown: list[str] = []
    in_section = in_code = False
    for line in lines:
        if line.strip() in {"Args:", "Returns:", "Raises:", "Attributes:", "Yields:"}:
            in_section = True
            shown += ["", f"**{line.strip()[:-1]}**", ""]
        elif in_section and re.match(r" {4}\S[^:]*:", line):
            name, _, rest = line.strip().partition(":")
            shown.append(f"- `{name}`:{rest}")
        elif in_section and line.strip():
            shown.append("  " + line.strip())
        else:
            in_section = in_section and not line.strip()
            code = line.startswith("    ")
            if code != in_code and (line.strip() or not code):
                shown.append("")
            in_code = code
            shown.append(line)
    return "\n".join(shown) + "\n"


def main() -> int:
    """Write the page, or say whether it is what would be written."""
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    sys.stderr.write(f"{PAGE} is not what the docstrings say; run `make gen`\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())

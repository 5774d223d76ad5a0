"""`hf://org/name[@revision]`: fetching a model's files from a Hugging Face hub.

Only what an import needs is fetched: weights as safetensors, never pickles. huggingface_hub is imported when a
hub source is named; it reads HF_ENDPOINT, HF_TOKEN and its cache folder from the environment. May import the
plugin API.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from headgate_plugin_api import LoadFailed, LoadProgress

_SOURCE: Final = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")

_WANTED: Final = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja")


def is_hub_source(source: str) -> bool:
    """Whether a source lies on a hub."""
    return source.startswith("hf://")


def resolve(source: str, report: Callable[[LoadProgress], None]) -> Path:
    """A local folder with the files of a hub source, fetched unless the cache has them.

    Raises:
        LoadFailed: The source is malformed, huggingface_hub is missing, or the hub refuses or cannot be reached.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise LoadFailed(f"{source}: expected hf://org/name or hf://org/name@revision")
    try:
        # The hub's client leaves a `dict` in its signature without types.
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise LoadFailed(f"{source} needs huggingface_hub: pip install huggingface_hub ({error})") from error
    report(LoadProgress(fraction=0.0, what=f"fetching {match[1]}"))
    try:
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=list(_WANTED)))
    except Exception as error:  # the hub's client raises its own, its HTTP library's and Python's errors
        raise LoadFailed(f"{source} cannot be fetched: {error}") from error

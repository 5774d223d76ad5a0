"""What a sentence-transformers folder says of its model: pooling, normalisation, prompts, lengths.

Reads JSON only. May import the plugin API.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec
from headgate_plugin_api import LoadFailed, Pooling

_POOLING_FLAGS: Final[dict[str, Pooling]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}

_POOLING_NAMES: Final[dict[str, Pooling]] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}


class SentenceRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a sentence becomes a vector, beside the transformer itself.

    Attributes:
        transformer: Folder with the transformer's config, weights and tokenizer.
        pooling: How token vectors become one.
        normalize: Whether it is scaled to length 1.
        dense: Folders of dense layers between pooling and normalisation, in order.
        prompts: Named prefixes; `default_prompt` names the one used when none is picked.
        max_tokens: The folder's own limit; None leaves the transformer's.
        lower_case: Whether texts are lower-cased before the tokenizer sees them.
    """

    transformer: Path
    pooling: Pooling = "mean"
    normalize: bool = False
    dense: tuple[Path, ...] = ()
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    max_tokens: int | None = None
    lower_case: bool = False


def read_recipe(folder: Path) -> SentenceRecipe:
    """Read a folder; one without modules.json is mean-pooled, which is what sentence-transformers does too.

    Raises:
        LoadFailed: A file is malformed, or asks for something that cannot be converted; names the file.
    """
    prompts = _json(folder / "config_sentence_transformers.json")
    if not (folder / "modules.json").is_file():
        return SentenceRecipe(transformer=folder)
    facts: dict[str, Any] = {"transformer": folder}
    dense: list[Path] = []
    for module in _modules(folder / "modules.json"):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = _inside(folder, str(module.get("path", "")))
        if facts.get("normalize"):
            raise LoadFailed(f"{folder / 'modules.json'}: a {kind} module after Normalize cannot be converted")
        if kind == "Transformer":
            facts |= _transformer(path)
        elif kind == "Pooling":
            facts["pooling"] = _pooling(path / "config.json", bool(prompts.get("prompts")))
        elif kind == "Dense":
            dense.append(path)
        elif kind == "Normalize":
            facts["normalize"] = True
        else:
            raise LoadFailed(f"{folder / 'modules.json'}: modules of type {kind!r} cannot be converted yet")
    texts: dict[str, Any] = prompts.get("prompts") or {}
    return SentenceRecipe(
        **facts,
        dense=tuple(dense),
        prompts={name: str(text) for name, text in texts.items()},
        default_prompt=prompts.get("default_prompt_name"),
    )


def _inside(folder: Path, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise LoadFailed(f"{folder / 'modules.json'}: the module path {name!r} leads out of the folder")
    return folder / name


def _transformer(path: Path) -> dict[str, Any]:
    config = _json(path / "sentence_bert_config.json")
    return {
        "transformer": path,
        "max_tokens": config.get("max_seq_length"),
        "lower_case": bool(config.get("do_lower_case")),
    }


def _pooling(path: Path, has_prompts: bool) -> Pooling:
    config = _json(path)
    if has_prompts and config.get("include_prompt") is False:
        raise LoadFailed(
            f"{path}: leaving the prompt out of pooling (include_prompt false) cannot be converted yet"
        )
    mode = config.get("pooling_mode")
    chosen = {mode} if mode else {name for name, on in config.items() if name.startswith("pooling_mode_") and on}
    if not chosen:
        chosen = {"mean"}
    if len(chosen) == 1:
        only = str(next(iter(chosen)))
        pooling = _POOLING_FLAGS.get(only) or _POOLING_NAMES.get(only)
        if pooling is not None:
            return pooling
    raise LoadFailed(
        f"{path}: pooling {', '.join(sorted(map(str, chosen)))} cannot be converted; known: cls, mean, max, last"
    )


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (OSError, msgspec.DecodeError) as error:
        raise LoadFailed(f"{path}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is not there."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise LoadFailed(f"{path}: {error}") from error

"""Whether the models that a command names are configured ones. May import domain.

The ledger does not know the config, and a price may well be set for a model that is to come: so those who know
the config ask, and whoever means it says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from headgate_gateway.domain.commands import Command, CreateKey, Rejected, SetPrice


def unknown_model(command: Command, models: Mapping[str, str]) -> Rejected | None:
    """Why a command is refused that names a model which is not configured.

    Args:
        command: Any.
        models: Ids of the configured models by each of their names, aliases included.
    """
    if isinstance(command, SetPrice) and not command.any_model:
        return _checked("model", command.model, models)
    if isinstance(command, CreateKey) and not command.any_model:
        found = (_checked("models", name, models) for name in sorted(command.models or ()))
        return next(filter(None, found), None)
    return None


def _checked(field: str, name: str, models: Mapping[str, str]) -> Rejected | None:
    """The ledger knows no aliases: a price or a right that was stored under one would be nobody's."""
    id_ = models.get(name)
    if id_ is None:
        return _unknown(field, name, models)
    if id_ != name:
        text = f"{name!r} is another name of {id_!r}; prices and keys are for {id_!r}"
        return Rejected(code="invalid", message=text, field=field)
    return None


def _unknown(field: str, name: str, models: Mapping[str, str]) -> Rejected:
    near = difflib.get_close_matches(name, models, n=1)
    known = ", ".join(sorted(set(models.values()))) or "none"
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {known}."
    text = f"no model {name[:128]!r} is configured; {hint} If it is to come, say any_model"
    return Rejected(code="invalid", message=text, field=field)

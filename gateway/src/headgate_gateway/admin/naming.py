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
        id_ = models.get(command.model)
        if id_ is None:
            return _unknown("model", command.model, models)
        if id_ != command.model:
            text = f"{command.model!r} is another name of {id_!r}; prices are those of {id_!r}"
            return Rejected(code="invalid", message=text, field="model")
    if isinstance(command, CreateKey) and not command.any_model:
        for name in sorted(command.models or ()):
            if name not in models:
                return _unknown("models", name, models)
    return None


def _unknown(field: str, name: str, models: Mapping[str, str]) -> Rejected:
    near = difflib.get_close_matches(name, models, n=1)
    known = ", ".join(sorted(set(models.values()))) or "none"
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {known}."
    text = f"no model {name[:128]!r} is configured; {hint} If it is to come, say any_model"
    return Rejected(code="invalid", message=text, field=field)

"""What can go wrong before a model is asked; what it means on a wire is decided in `http/`.

InferenceError
├── UnknownModel    no model or alias of that name is configured
├── WrongTask       the model is there, but does something else
├── NotAllowed      the key may not ask for it
└── Rejected        the ledger refused; carries its answer

Failures of backends are the plugin API's `BackendError` and pass through as they are. May import domain.
"""

from __future__ import annotations

from headgate_gateway.domain.admission import Refused


class InferenceError(Exception):
    """Anything that this room raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UnknownModel(InferenceError):
    """No model or alias of that name is configured."""

    def __init__(self, model: str) -> None:
        super().__init__(f"the model {model!r} does not exist; GET /v1/models lists those that do")
        self.model = model


class WrongTask(InferenceError):
    """The model does something else than what was asked for."""

    def __init__(self, model: str, *, asked: str, serves: str) -> None:
        super().__init__(f"the model {model!r} serves the task {serves!r}, not {asked!r}")
        self.model = model
        self.asked = asked
        self.serves = serves


class NotAllowed(InferenceError):
    """The key lacks a scope or the right to this model."""


class Rejected(InferenceError):
    """The ledger did not admit the request; nothing is held.

    Attributes:
        refused: Its answer, with scope, limit and when to come again.
    """

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused

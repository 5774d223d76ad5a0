"""What can be wrong with the models of a config. Imports nothing of ours."""

from __future__ import annotations


class MisconfiguredModel(ValueError):
    """A `[[models]]` entry cannot be served.

    Attributes:
        path: Where in the config: `models[2].targets[0].model`.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path

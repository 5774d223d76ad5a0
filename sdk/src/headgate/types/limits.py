"""The limits and budgets that stand over a key."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from headgate.types.shared import Wire


class AccountLimits(Wire):
    """What `GET /v1/limits` says; members that are not named here are kept."""

    limits: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    budgets: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])

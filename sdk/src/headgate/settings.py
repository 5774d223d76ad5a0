"""The environment, read in one place: HEADGATE_API_KEY, HEADGATE_BASE_URL, HEADGATE_OFFLINE."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, cast

from headgate._core.request import DEFAULT_BASE_URL, normalise_base_url
from headgate.errors import ConfigurationError, OfflineError

TransportName = Literal["auto", "httpx", "fast"]


def api_key(given: str | None) -> str:
    """The key to use.

    Raises:
        ConfigurationError: None was given and HEADGATE_API_KEY is not set, or it has characters no header takes.
    """
    key = given if given is not None else os.environ.get("HEADGATE_API_KEY", "")
    if not isinstance(cast("object", key), str):
        raise ConfigurationError(f"api_key: expected text, got {type(key).__name__}")
    key = key.strip()
    if not key:
        raise ConfigurationError("no API key: pass api_key=... or set HEADGATE_API_KEY")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError("the API key has characters that no key has")
    return key


def base_url(given: str | None) -> str:
    """The gateway's address, without `/v1`."""
    return normalise_base_url(given or os.environ.get("HEADGATE_BASE_URL") or DEFAULT_BASE_URL)


def forbid_sockets() -> None:
    """Refuse where HEADGATE_OFFLINE is set.

    Raises:
        OfflineError: It is; `headgate.testing.FakeGateway` needs no socket.
    """
    if os.environ.get("HEADGATE_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}:
        raise OfflineError("HEADGATE_OFFLINE is set: the network is forbidden; use headgate.testing.FakeGateway")


def is_fast(name: str, uds: str | None) -> bool:
    """Whether the fast transport is to be used.

    Raises:
        ConfigurationError: The name is unknown, or the transport asked for is not installed.
    """
    installed = importlib.util.find_spec("pyreqwest") is not None
    if name == "auto":
        return installed and uds is None
    if name == "fast":
        if not installed:
            raise ConfigurationError('transport="fast" needs: pip install "headgate[fast]"')
        return True
    if name == "httpx":
        return False
    raise ConfigurationError(f'transport: {name!r} is unknown; expected "auto", "httpx", "fast" or an object')

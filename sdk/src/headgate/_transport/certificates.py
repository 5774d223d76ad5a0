"""The authorities that a user names. May import errors."""

from __future__ import annotations

import ssl
from pathlib import Path

from headgate.errors import ConfigurationError


def authorities(ca: str | Path) -> ssl.SSLContext:
    """What trusts the authorities of a file.

    Raises:
        ConfigurationError: `wiring.ca` is no PEM file of authorities.
    """
    try:
        return ssl.create_default_context(cafile=str(ca))
    except OSError as error:  # what OpenSSL cannot read is one of these as well
        reason = error.strerror or str(error)
        raise ConfigurationError(f"wiring.ca: {str(ca)!r} is no PEM file of authorities: {reason}") from error

"""Where a request goes: an address taken apart once, and the proxy on the way to it. Imports nothing of ours."""

from __future__ import annotations

import base64
import re
import urllib.request
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

_PORTS: Final = {"http": 80, "https": 443}
_TARGET: Final = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Origin:
    """Whom a connection leads to; connections to equal origins are interchangeable.

    Attributes:
        proxy: The HTTP proxy on the way, None for none.
    """

    host: str
    port: int
    tls: bool
    proxy: Origin | None = None
    authorization: str | None = None
    """What a proxy wants to see, from the user and password of its address."""


@dataclass(frozen=True)
class Address:
    """One address of a provider.

    Attributes:
        target: What the request line names.
        lines: The headers that the address adds to every request: `host`, and what a proxy wants to see.
        authorization: From the user and password of the address, where it has them.
        place: Names it in errors, without the credentials that may stand in it.
    """

    origin: Origin
    target: str
    lines: tuple[str, ...]
    place: str
    authorization: str | None = None


def parse(url: str) -> Address:
    """Take an address apart.

    The proxy is the one of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, as other clients understand them.

    Raises:
        ValueError: It is none that can be asked.
    """
    parts = urlsplit(url)
    origin = _origin(parts)
    default = origin.port == _PORTS[parts.scheme]
    shown = f"[{origin.host}]" if ":" in origin.host else origin.host
    host = shown if default else f"{shown}:{origin.port}"
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    proxy = _proxy(parts.scheme, origin)
    if proxy is not None:
        origin = Origin(origin.host, origin.port, origin.tls, proxy)
        if not origin.tls:
            target = f"http://{host}{target}"
    if not _TARGET.fullmatch(target) or not _TARGET.fullmatch(host):
        raise ValueError("an address holds no blanks and nothing but ASCII")
    lines = [f"host: {host}"]
    if proxy is not None and proxy.authorization and not origin.tls:
        lines.append(f"proxy-authorization: {proxy.authorization}")
    return Address(
        origin, target, tuple(lines), f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", _basic(parts)
    )


def _origin(parts: SplitResult) -> Origin:
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("expected http:// or https:// and a host")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
    return Origin(host, parts.port or _PORTS[parts.scheme], parts.scheme == "https")


def _proxy(scheme: str, origin: Origin) -> Origin | None:
    named = urllib.request.getproxies()
    url = named.get(scheme) or named.get("all")
    if not url or urllib.request.proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http":
        raise ValueError("the way to a proxy is plain HTTP")
    found = _origin(parts)
    return Origin(found.host, found.port, tls=False, authorization=_basic(parts))


def _basic(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"

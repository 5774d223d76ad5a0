"""A provider that answers as it is told to, for the suite of remote backends. May import the plugin API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from headgate_plugin_api.errors import UpstreamFailed


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What the backend sent."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the provider answers."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


class ScriptedResponse:
    """An `UpstreamResponse` over a reply, its body cut into pieces of a given size."""

    def __init__(self, reply: Reply, piece: int) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.closed = False
        self._body = reply.body
        self._piece = piece

    async def read(self, limit: int) -> bytes:
        """See UpstreamResponse."""
        if len(self._body) > limit:
            raise UpstreamFailed(f"the body is longer than {limit} bytes")
        return self._body

    async def chunks(self) -> AsyncIterator[bytes]:
        """See UpstreamResponse."""
        for start in range(0, len(self._body), self._piece):
            yield self._body[start : start + self._piece]

    async def close(self) -> None:
        """See UpstreamResponse."""
        self.closed = True


class ScriptedUpstream:
    """An `Upstream` that remembers what was sent and which responses were let go."""

    def __init__(self, answer: Callable[[Sent], Reply], *, piece: int = 1 << 20) -> None:
        self.sent: list[Sent] = []
        self.responses: list[ScriptedResponse] = []
        self._answer = answer
        self._piece = piece

    async def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> ScriptedResponse:
        """See Upstream."""
        assert timeout_s > 0, "a call to a provider has a time limit"
        sent = Sent(method=method, url=url, headers=headers, body=body or b"")
        self.sent.append(sent)
        response = ScriptedResponse(self._answer(sent), self._piece)
        self.responses.append(response)
        return response

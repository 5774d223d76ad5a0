"""Events of a streamed response folded into the response. Pure; imports the wire types."""

from __future__ import annotations

from headgate.types.responses import OutputContent, OutputItem, Response, ResponseEvent
from headgate.types.shared import Usage

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ResponseFold:
    """The last snapshot that came wins; until one does, the deltas make the text."""

    chunk_type = ResponseEvent
    asks_usage = False

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._snapshot: Response | None = None
        self._text: list[str] = []

    def add(self, chunk: ResponseEvent) -> None:
        """Take the next event."""
        if chunk.response is not None:
            self._snapshot = chunk.response
            self.usage = chunk.response.usage or self.usage
        self._text.append(self.text_of(chunk))

    def text_of(self, chunk: ResponseEvent) -> str:
        """What the event adds to the text."""
        if chunk.type == "response.output_text.delta" and isinstance(chunk.delta, str):
            return chunk.delta
        return ""

    def shown(self, chunk: ResponseEvent) -> bool:  # noqa: ARG002  the protocol asks
        """Every event is shown."""
        return True

    def ends(self, chunk: ResponseEvent) -> bool:
        """Whether this is the last event."""
        return chunk.type in _ENDS

    def final(self) -> Response:
        """The response so far."""
        response = self._snapshot or Response()
        if not response.output and any(self._text):
            part = OutputContent(text="".join(self._text))
            response = response.model_copy(update={"output": [OutputItem(role="assistant", content=[part])]})
        return response

"""Text out of tokens, piece by piece: whole characters only, and nothing that a stop string may still claim.

Pure but for the tokenizer it is given. Imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, specials left out, spaces left alone."""

BROKEN: Final = "\ufffd"
MAX_PENDING: Final = 8
"""Tokens that a character may be spread over before it counts as truly broken; UTF-8 needs at most four."""

LOOK_BACK: Final = 6
"""Tokens before the answer that decoding needs to see: some vocabularies drop a leading space."""

MAX_SEEN: Final = 16
"""Tokens that are decoded again with each new one, at most."""


class Detokenizer:
    """Text of a growing sequence; what it has given is never taken back."""

    def __init__(self, decode: Decode, before: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(before[-LOOK_BACK:])
        self._given = len(self._ids)
        """Tokens whose text was given; those before them are only there to be looked back on."""
        self._prefix = decode(self._ids)

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is still open."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(BROKEN) and len(self._ids) - self._given < MAX_PENDING:
            return ""
        return self._give(text)

    def end(self) -> str:
        """What is left, an open character as U+FFFD."""
        return self._give(self._decode(self._ids))

    def _give(self, text: str) -> str:
        fresh = text[len(self._prefix) :]
        self._prefix = text
        if len(self._ids) > MAX_SEEN:
            # Forget all but a short look-back, so that a token costs the same however long the answer becomes.
            del self._ids[:-LOOK_BACK]
            self._prefix = self._decode(self._ids)
        self._given = len(self._ids)
        return fresh


class StopScanner:
    """Finds the first stop string in growing text, across any borders, and holds back what may begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Text that may go out now, and whether a stop string was met: then nothing may follow."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            out, self._held = self._held[: min(found)], ""
            return out, True
        keep = max(self._open(stop) for stop in self._stops)
        split = len(self._held) - keep
        out, self._held = self._held[:split], self._held[split:]
        return out, False

    def end(self) -> str:
        """What was held back for a stop string that did not come."""
        out, self._held = self._held, ""
        return out

    def _open(self, stop: str) -> int:
        """How many characters at the end of what is held could be the beginning of this stop string."""
        for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:size]):
                return size
        return 0

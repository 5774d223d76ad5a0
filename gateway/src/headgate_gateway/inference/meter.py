"""Counts what one answer relays, and holds an upstream's own count against it.

An upstream is hostile input. The rules, and why:

- **Input** above the bound is cut to the bound: the bound is an upper limit by construction, and the hold has
  room for output that a false input count could otherwise eat up within the customer's budget.
- **Output** above the limit that we told the upstream is cut to that limit, for the same reason.
- **Visible output** of a remote upstream is believed only up to one token per relayed byte, plus an allowance
  for tokens without text (end markers, the frame of a tool call). A token of every tokenizer in use stands for
  at least one byte, so more is impossible. An implausible count is replaced by ours.
- **No output at all** although text was relayed, or no report: counted, not zero: the tokens that events name,
  else relayed UTF-8 bytes / 4 rounded down.
- Hidden reasoning cannot be held against anything but the limit.

May import bounds and the plugin API.
"""

from __future__ import annotations

from typing import Final

import msgspec
from headgate_plugin_api import DIMENSIONS, Event, TextDelta, ToolCallDelta, Usage, UsageReport, UsageSource

from headgate_gateway.inference.bounds import BYTES_PER_TOKEN, Bound

CHOICE_ALLOWANCE: Final = 16
"""Tokens without text that one choice may have: start and end markers."""

TOOL_CALL_ALLOWANCE: Final = 64
"""Tokens around one tool call that are never relayed."""

_NOTHING: Final = (0, 0, 0, 0, 0)

HIGHEST: Final = 2**53
"""Counts are recorded up to here, so that a liar's number cannot overflow anything."""


class Meter:
    """Counts one answer's events, as they are handed on.

    Attributes:
        extra_bytes: Bytes of fields without a canonical form, which may carry text as well.
        pieces: Events that carried any text.
    """

    extra_bytes = 0
    pieces = 0
    _named = 0
    _reasoning_named = 0
    _text_bytes = 0
    _reasoning_bytes = 0

    def __init__(self) -> None:
        self._calls: set[tuple[int, int]] = set()

    def add(self, event: Event) -> None:
        """Count one event in."""
        if isinstance(event, TextDelta):
            size = len(event.text.encode("utf-8", "surrogatepass"))
            if event.extra:
                self.extra_bytes += len(msgspec.json.encode(event.extra))
            self._count(size, event.tokens, reasoning=event.reasoning)
        elif isinstance(event, ToolCallDelta):
            self._calls.add((event.index, event.call))
            size = len(event.arguments.encode("utf-8", "surrogatepass")) + len((event.name or "").encode())
            self._count(size, event.tokens, reasoning=False)

    def _count(self, size: int, tokens: int | None, *, reasoning: bool) -> None:
        if size:
            self.pieces += 1
        if tokens is not None and 0 <= tokens < HIGHEST:
            if reasoning:
                self._reasoning_named += tokens
            else:
                self._named += tokens
        elif reasoning:
            self._reasoning_bytes += size
        else:
            self._text_bytes += size

    @property
    def output(self) -> int:
        """Visible output tokens so far."""
        return self._named + self._text_bytes // BYTES_PER_TOKEN

    @property
    def reasoning(self) -> int:
        """Reasoning tokens that were relayed so far."""
        return self._reasoning_named + self._reasoning_bytes // BYTES_PER_TOKEN

    @property
    def total(self) -> int:
        """All output tokens so far."""
        return self.output + self.reasoning

    @property
    def counted(self) -> bool:
        """Whether every event named its tokens."""
        return self.relayed_bytes == 0

    @property
    def relayed_bytes(self) -> int:
        """Bytes of text whose tokens nobody named."""
        return self._text_bytes + self._reasoning_bytes

    @property
    def most_plausible(self) -> int:
        """Visible tokens that the relayed bytes could stand for at the very most, choices' allowance aside."""
        return self._named + self._text_bytes + self.extra_bytes + TOOL_CALL_ALLOWANCE * len(self._calls)

    def delivered(self, bound: Bound, reported: Usage | None = None) -> Usage:
        """Usage of what was relayed so far; input from an early report, else estimated."""
        output = min(self.output, bound.most)
        reasoning = min(self.reasoning, bound.most - output)
        base = _clamped_input(reported, bound) if reported is not None else bound.estimated_input
        return msgspec.structs.replace(base, output=output, reasoning=reasoning, requests=1)


def checked(
    report: UsageReport | None, meter: Meter, bound: Bound, *, trusted: bool
) -> tuple[Usage, UsageSource]:
    """Usage of a complete answer, and who counted it.

    Args:
        report: What the upstream said, if it said anything.
        meter: What was relayed.
        bound: What was possible.
        trusted: Whether one of our own engines counted. Its output is not held against bytes, because tokens
            without text are common in a small model's output; limits still hold.
    """
    if report is None:
        return meter.delivered(bound), "estimated"
    source: UsageSource = report.source
    said = report.usage
    usage = _clamped_input(said, bound)
    if usage.prompt_tokens != said.prompt_tokens:
        source = "estimated"
    output, reasoning = max(0, said.output), max(0, said.reasoning)
    plausible = meter.most_plausible + CHOICE_ALLOWANCE * bound.choices
    if not trusted and (output > plausible or said.output < 0):
        output, source = meter.output, "estimated"
    if output + reasoning == 0 and meter.total > 0:
        output, reasoning, source = meter.output, meter.reasoning, "estimated"
    if output + reasoning > bound.most:
        output = min(output, bound.most)
        reasoning = min(reasoning, bound.most - output)
        source = "estimated"
    return msgspec.structs.replace(usage, output=output, reasoning=reasoning, requests=1), source


def recordable(usage: Usage) -> Usage:
    """An upstream's own words, for the attempt's record: as said, but within what a store can hold."""
    said = msgspec.structs.astuple(usage)
    if min(said) >= 0 and max(said) <= HIGHEST:
        return usage
    counts = {name: count for name in DIMENSIONS if (count := getattr(usage, name))}
    return Usage(**{name: min(max(0, count), HIGHEST) for name, count in counts.items()})


def _clamped_input(said: Usage, bound: Bound) -> Usage:
    """Everything that is not output: no part negative, none above the bound, tokens in all within its input."""
    most = bound.usage
    room = most.prompt_tokens
    if (said.cache_write, said.cache_read, said.images, said.audio_ms, said.gpu_ms) == _NOTHING:
        return Usage(input=min(max(0, said.input), room))
    fresh = min(max(0, said.input), room)
    written = min(max(0, said.cache_write), room - fresh)
    return Usage(
        input=fresh,
        cache_write=written,
        cache_read=min(max(0, said.cache_read), room - fresh - written),
        images=min(max(0, said.images), most.images),
        audio_ms=min(max(0, said.audio_ms), most.audio_ms),
        gpu_ms=min(max(0, said.gpu_ms), most.gpu_ms),
    )

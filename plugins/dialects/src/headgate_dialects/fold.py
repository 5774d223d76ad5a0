"""Folding a sequence of events of text generation into whole choices.

May import the plugin API.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from headgate_plugin_api import (
    Event,
    Finished,
    FinishReason,
    JsonValue,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    UsageReport,
)


class _Call(msgspec.Struct):
    id: str = ""
    name: str = ""
    arguments: list[str] = []


class Choice(msgspec.Struct):
    """One choice, as far as it has come."""

    texts: list[str] = []
    reasonings: list[str] = []
    _calls: dict[int, _Call] = {}
    finish: FinishReason = "stop"
    extra: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """What was thought before."""
        return "".join(self.reasonings)

    @property
    def calls(self) -> list[ToolCall]:
        """Its tool calls, in order."""
        return [
            ToolCall(id=call.id, name=call.name, arguments="".join(call.arguments))
            for _, call in sorted(self._calls.items())
        ]

    def call(self, event: ToolCallDelta) -> None:
        """Take a piece of a tool call."""
        call = self._calls.get(event.call)
        if call is None:
            call = self._calls[event.call] = _Call()
        call.id = event.id or call.id
        call.name = event.name or call.name
        call.arguments.append(event.arguments)


class Fold:
    """The whole answer that events are of. Results of other tasks are ignored.

    Attributes:
        choices: By index, in order; the first one at least. One that produced nothing but was finished is there.
        report: The usage report, if there was one.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        choices: defaultdict[int, Choice] = defaultdict(Choice)
        self.report: UsageReport | None = None
        for event in events:
            if isinstance(event, TextDelta):
                choice = choices[event.index]
                (choice.reasonings if event.reasoning else choice.texts).append(event.text)
                if event.extra:
                    _merge(choice.extra, event.extra)
            elif isinstance(event, Finished):
                choices[event.index].finish = event.reason
            elif isinstance(event, UsageReport):
                self.report = event
            elif isinstance(event, ToolCallDelta):
                choices[event.index].call(event)
        if 0 not in choices:
            choices[0] = Choice()
        self.choices: dict[int, Choice] = choices if len(choices) == 1 else dict(sorted(choices.items()))


def condense(events: Sequence[Event]) -> tuple[Event, ...]:
    """The same answer in as few events as it takes: text merged per choice. Other results pass as they are."""
    kept = [e for e in events if not isinstance(e, TextDelta | ToolCallDelta | Finished | UsageReport)]
    fold = Fold(events)
    if kept:
        return (*kept, fold.report) if fold.report else tuple(kept)
    return whole_events(fold)


def whole_events(fold: Fold) -> tuple[Event, ...]:
    """A fold's choices as events."""
    events: list[Event] = []
    for index, choice in fold.choices.items():
        if reasoning := choice.reasoning:
            events.append(TextDelta(text=reasoning, index=index, reasoning=True))
        if (text := choice.text) or choice.extra:
            events.append(TextDelta(text=text, index=index, extra=choice.extra))
        events += [
            ToolCallDelta(index=index, call=n, id=call.id, name=call.name, arguments=call.arguments)
            for n, call in enumerate(choice.calls)
        ]
        events.append(Finished(reason=choice.finish, index=index))
    if fold.report is not None:
        events.append(fold.report)
    return tuple(events)


def _merge(into: dict[str, JsonValue], more: dict[str, JsonValue]) -> None:
    """Join what chunks carried beside their text: strings and lists grow, objects merge, else the last wins."""
    for name, value in more.items():
        old = into.get(name)
        match old, value:
            case str(), str():
                into[name] = old + value
            case list(), list():
                into[name] = [*old, *value]
            case dict(), dict():
                into[name] = merged = dict(old)
                _merge(merged, value)
            case _:
                if value is not None or name not in into:
                    into[name] = value

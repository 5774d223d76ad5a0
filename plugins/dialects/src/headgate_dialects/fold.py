"""Folding a sequence of events of text generation into whole choices.

May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from headgate_plugin_api import (
    Event,
    Finished,
    FinishReason,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    UsageReport,
)


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass
class Choice:
    """One whole choice."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finish: FinishReason = "stop"
    extra: dict[str, Any] = field(default_factory=dict)


class Fold:
    """Collects events; `choices` and `report` are the whole answer.

    Choices that produced nothing but were finished are there, with empty text.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._text: dict[int, list[str]] = {}
        self._reasoning: dict[int, list[str]] = {}
        self._calls: dict[int, dict[int, _Call]] = {}
        self._finish: dict[int, FinishReason] = {}
        self._extra: dict[int, dict[str, Any]] = {}
        self.report: UsageReport | None = None
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Take one event. Results of other tasks are ignored."""
        if isinstance(event, TextDelta):
            into = self._reasoning if event.reasoning else self._text
            into.setdefault(event.index, []).append(event.text)
            if event.extra:
                _merge(self._extra.setdefault(event.index, {}), event.extra)
        elif isinstance(event, ToolCallDelta):
            call = self._calls.setdefault(event.index, {}).setdefault(event.call, _Call())
            call.id = event.id or call.id
            call.name = event.name or call.name
            call.arguments.append(event.arguments)
        elif isinstance(event, Finished):
            self._finish[event.index] = event.reason
        elif isinstance(event, UsageReport):
            self.report = event

    @property
    def choices(self) -> dict[int, Choice]:
        """The choices by index, in order; at least one."""
        indexes = sorted({0, *self._text, *self._reasoning, *self._calls, *self._finish})
        return {index: self._choice(index) for index in indexes}

    def _choice(self, index: int) -> Choice:
        calls = self._calls.get(index, {})
        return Choice(
            text="".join(self._text.get(index, ())),
            reasoning="".join(self._reasoning.get(index, ())),
            calls=[
                ToolCall(id=calls[n].id, name=calls[n].name, arguments="".join(calls[n].arguments))
                for n in sorted(calls)
            ],
            finish=self._finish.get(index, "stop"),
            extra=self._extra.get(index, {}),
        )


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
        if choice.reasoning:
            events.append(TextDelta(text=choice.reasoning, index=index, reasoning=True))
        if choice.text or choice.extra:
            events.append(TextDelta(text=choice.text, index=index, extra=choice.extra))
        events += [
            ToolCallDelta(index=index, call=n, id=call.id, name=call.name, arguments=call.arguments)
            for n, call in enumerate(choice.calls)
        ]
        events.append(Finished(reason=choice.finish, index=index))
    if fold.report is not None:
        events.append(fold.report)
    return tuple(events)


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Join what chunks carried beside their text: strings and lists grow, objects merge, else the last wins."""
    for name, value in more.items():
        old = into.get(name)
        match old, value:
            case (str(), str()) | (list(), list()):
                into[name] = old + value
            case (dict(), dict()):
                into[name] = merged = dict(old)
                _merge(merged, value)
            case _ if value is not None or name not in into:
                into[name] = value

"""Chat and completion: a step model that says the last user message again, word by word, at its own pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    Event,
    Finished,
    FinishReason,
    InferenceRequest,
    InvalidRequest,
    ModelInfo,
    StepOutput,
    TextDelta,
    Usage,
    UsageReport,
)

ROOM = 4096
"""Requests that are answered at the same time."""

MOST_WORDS = 65_536
"""Words of one choice at most, as a real model has a longest output."""

MOST_CHOICES = 128

WORDS_PER_STEP = 256
"""Words that one step says for one request at most, so that no request holds up the others."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `options` of the config; a request may say otherwise for itself.

    Attributes:
        tokens: Words that every answer is repeated or cut to; None leaves it as long as what it echoes.
        delay_ms: Milliseconds that each word takes.
        dimensions: Length of an embedding.
    """

    tokens: int | None = None
    delay_ms: float = 0.0
    dimensions: int = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice: the words that are said round and round, how many of them, and why it ends there."""

    words: list[str]
    count: int
    reason: FinishReason


def input_words(payload: ChatPayload | CompletionPayload) -> int:
    """Input tokens: the words of all messages or prompts."""
    if isinstance(payload, ChatPayload):
        return sum(len(message.text.split()) for message in payload.messages)
    return sum(len(prompt.split()) for prompt in payload.prompts)


def request_options(request: InferenceRequest, options: Options) -> Options:
    """The request's own options over those of the config. Raises `InvalidRequest`."""
    if not request.options:
        return options
    try:
        merged = msgspec.convert(msgspec.structs.asdict(options) | request.options, Options)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), path="options") from None
    if merged.tokens is not None and merged.tokens < 0:
        raise InvalidRequest("expected a number of words, 0 or more", path="options.tokens")
    if not 0 <= merged.delay_ms <= 60_000:
        raise InvalidRequest("expected milliseconds from 0 to 60000", path="options.delay_ms")
    return merged


def ask(request: InferenceRequest, options: Options, limit: int | None) -> list[Answer]:
    """What will be said, choice by choice. Raises `InvalidRequest`."""
    payload = request.payload
    options = request_options(request, options)
    if isinstance(payload, ChatPayload):
        said = [message.text for message in payload.messages if message.role == "user"]
        if not said:
            raise InvalidRequest("expected at least one message with role 'user'", path="messages")
        prompts = said[-1:]
    elif isinstance(payload, CompletionPayload):
        prompts = list(payload.prompts)
    else:
        raise InvalidRequest(f"this model does chat and completion, not {request.task}", path="model")
    if len(prompts) * payload.n > MOST_CHOICES:
        raise InvalidRequest(f"expected at most {MOST_CHOICES} choices in all", path="n")
    limits = (MOST_WORDS, request.max_output, limit)
    most = min(value for value in limits if value is not None)
    return [_answer(prompt.split(), options.tokens, most) for prompt in prompts for _ in range(payload.n)]


def _answer(words: list[str], tokens: int | None, most: int) -> Answer:
    wanted = len(words) if tokens is None or not words else tokens
    return Answer(words, min(wanted, most), "length" if wanted > most else "stop")


class _Speech:
    """One request in the course of being answered: all its choices advance together."""

    def __init__(self, request: InferenceRequest, answers: Sequence[Answer], delay_s: float, now: float) -> None:
        self.answers = answers
        self.said = 0  # words of each choice, as far as it is that long
        self.delay_s = delay_s
        self.due = now + delay_s
        self._longest = max(answer.count for answer in answers)
        self._input = input_words(request.payload)  # type: ignore[arg-type]
        self._tells_input = request.stream

    @property
    def usage(self) -> Usage:
        """What was consumed so far."""
        return Usage(input=self._input, output=sum(min(self.said, answer.count) for answer in self.answers))

    @property
    def done(self) -> bool:
        return self.said >= self._longest

    def say(self, now: float) -> Iterator[Event]:
        """The words that are due by now."""
        for _ in range(WORDS_PER_STEP):
            if self.done or self.due > now:
                break
            if self._tells_input:
                yield UsageReport(usage=Usage(input=self._input))
                self._tells_input = False
            for index, answer in enumerate(self.answers):
                if self.said < answer.count:
                    space = " " if self.said else ""
                    word = answer.words[self.said % len(answer.words)]
                    yield TextDelta(text=space + word, index=index, tokens=1)
            self.said += 1
            self.due += self.delay_s
        if self.done:
            for index, answer in enumerate(self.answers):
                yield Finished(reason=answer.reason, index=index)
            yield UsageReport(usage=self.usage)


class EchoSpeaker:
    """The step model. The host calls every method from one thread, so there is nothing to lock."""

    def __init__(
        self, options: Options, *, max_output: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.info = ModelInfo(
            detail="echo",
            max_output_tokens=max_output or MOST_WORDS,
            tokens_per_byte=1,
            template_tokens=0,
            platform="echo",
        )
        self._options = options
        self._max_output = max_output
        self._clock = clock
        self._speeches: dict[str, _Speech] = {}

    @property
    def room(self) -> int:
        """See StepModel."""
        return ROOM - len(self._speeches)

    @property
    def idle_s(self) -> float:
        """See Paced: until the next word of any request is due."""
        if not self._speeches:
            return 0.0
        return max(0.0, min(speech.due for speech in self._speeches.values()) - self._clock())

    def admit(self, request: InferenceRequest) -> None:
        """See StepModel."""
        answers = ask(request, self._options, self._max_output)
        delay_s = request_options(request, self._options).delay_ms / 1000
        now = self._clock()
        speech = _Speech(request, answers, delay_s, now)
        if speech.done:
            speech.due = now  # an empty answer has no word to wait for
        self._speeches[request.id] = speech

    def step(self) -> Sequence[StepOutput]:
        """See StepModel."""
        now = self._clock()
        outputs: list[StepOutput] = []
        for request_id, speech in list(self._speeches.items()):
            if events := tuple(speech.say(now)):
                outputs.append(StepOutput(request_id=request_id, events=events, done=speech.done))
                if speech.done:
                    del self._speeches[request_id]
        return outputs

    def cancel(self, request_id: str) -> Usage | None:
        """See StepModel."""
        speech = self._speeches.pop(request_id, None)
        return None if speech is None else speech.usage

    def close(self) -> None:
        """See StepModel."""
        self._speeches.clear()

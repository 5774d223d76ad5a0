"""Chat and completion: a step model that says the last user message again, word by word, at its own pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

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
    TextPart,
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
    before: str = ""
    """Text that is there already, and no output."""


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
    echoes = False
    if isinstance(payload, ChatPayload):
        _check_chat(payload)
        said = [message.text for message in payload.messages if message.role == "user"]
        if not said:
            raise InvalidRequest("expected at least one message with role 'user'", path="messages")
        prompts = said[-1:]
    elif isinstance(payload, CompletionPayload):
        echoes = payload.echo
        prompts = list(payload.prompts)
    else:
        raise InvalidRequest(f"this model does chat and completion, not {request.task}", path="model")
    if len(prompts) * payload.n > MOST_CHOICES:
        raise InvalidRequest(f"expected at most {MOST_CHOICES} choices in all", path="n")
    limits = (MOST_WORDS, request.max_output, limit)
    most = min(value for value in limits if value is not None)
    stops = payload.sampling.stop
    if "" in stops:
        raise InvalidRequest("expected strings of at least one character", path="stop")
    answers = [_stopped(_answer(prompt, options.tokens, most, echoes=echoes), stops) for prompt in prompts]
    return [answer for answer in answers for _ in range(payload.n)]


def _check_chat(payload: ChatPayload) -> None:
    """What would be left out of the answer without a word is refused."""
    for at, message in enumerate(payload.messages):
        for place, part in enumerate(() if isinstance(message.content, str) else message.content):
            if not isinstance(part, TextPart):
                raise InvalidRequest("this model takes text only", path=f"messages[{at}].content[{place}]")
    if payload.tool_choice not in (None, "auto", "none"):
        raise InvalidRequest("this model calls no tools", path="tool_choice")
    if payload.response_format and payload.response_format.get("type") != "text":
        raise InvalidRequest("only {'type': 'text'} is supported", path="response_format.type")


def _answer(prompt: str, tokens: int | None, most: int, *, echoes: bool) -> Answer:
    words = prompt.split()
    wanted = len(words) if tokens is None or not words else tokens
    return Answer(words, min(wanted, most), "length" if wanted > most else "stop", prompt if echoes else "")


def _stopped(answer: Answer, stops: Sequence[str]) -> Answer:
    """The answer up to the first stop string. Words go round, so that it begins in their first round if ever."""
    if not stops or not answer.count:
        return answer
    longest = len(" ".join(answer.words)) + max(map(len, stops))
    said: list[str] = []
    length = 0
    for word in islice(cycle(answer.words), answer.count):
        if length > longest:
            break
        said.append(word)
        length += len(word) + 1
    text = " ".join(said)
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return answer
    # A piece of a word is a word, and so is the space before a stop string that begins one.
    words = text[: min(found)].split(" ") if min(found) else []
    return Answer(words, len(words), "stop", answer.before)


class _Speech:
    """One request in the course of being answered: all its choices advance together."""

    def __init__(self, request: InferenceRequest, answers: Sequence[Answer], delay_s: float, now: float) -> None:
        self.answers = answers
        self.said = 0  # words of each choice, as far as it is that long
        self.delay_s = delay_s
        self.due = now + delay_s
        self._longest = max(answer.count for answer in answers)
        self._input = input_words(request.payload)  # type: ignore[arg-type]
        self._streams = request.stream
        self._began = False

    @property
    def usage(self) -> Usage:
        """What was consumed so far."""
        return Usage(input=self._input, output=sum(min(self.said, answer.count) for answer in self.answers))

    @property
    def done(self) -> bool:
        return self.said >= self._longest

    def say(self, now: float) -> Iterator[Event]:
        """The words that are due by now."""
        if not self._began and (self.done or self.due <= now):
            self._began = True
            yield from self._beginning()
        for _ in range(WORDS_PER_STEP):
            if self.done or self.due > now:
                break
            for index, answer in enumerate(self.answers):
                if self.said < answer.count:
                    space = " " if self.said or answer.before else ""
                    word = answer.words[self.said % len(answer.words)]
                    yield TextDelta(text=space + word, index=index, tokens=1)
            self.said += 1
            self.due += self.delay_s
        if self.done:
            for index, answer in enumerate(self.answers):
                yield Finished(reason=answer.reason, index=index)
            yield UsageReport(usage=self.usage)

    def _beginning(self) -> Iterator[Event]:
        if self._streams:
            yield UsageReport(usage=Usage(input=self._input))
        for index, answer in enumerate(self.answers):
            if answer.before:
                yield TextDelta(text=answer.before, index=index, tokens=0)


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

"""From payloads to token ids: chat templates, plain prompts, and the limits on both.

May import the plugin API; the tokenizer is handed in. transformers renders chat templates in a sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headgate_plugin_api import ChatPayload, CompletionPayload, InvalidRequest, Message, TextPart

MAX_CHOICES: Final = 128
"""Choices a request may ask for, over all its prompts."""

TEMPLATE_MARGIN: Final = 16
"""Tokens that a template's text may grow by where it touches a message: pieces merge differently there."""

NFC_GROWTH: Final = 3
NORMALISED_GROWTH: Final = 11
"""How much longer UTF-8 may get by composing (NFC), and by the worst other form (NFKC: 3 bytes to 33)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one row begins with; `text` is what `echo` repeats."""

    tokens: tuple[int, ...]
    text: str


class Prompts:
    """Encodes the prompts of one model.

    Attributes:
        limit: Tokens that a prompt may have, specials included.
        tokens_per_byte: Tokens that a byte of text may become, at most.
        has_template: Whether the tokenizer brings a chat template.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer = tokenizer
        self.limit = limit
        self.tokens_per_byte = _tokens_per_byte(tokenizer)
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        # Normalisation may make text shorter before it is cut, though hardly to a quarter.
        shrink = 1 if self.tokens_per_byte == 1 else 4
        self._longest = shrink * max((len(piece) for piece in tokenizer.get_vocab()), default=1)

    def encode(self, payload: ChatPayload | CompletionPayload) -> list[Prompt]:
        """The prompts of a payload, in order.

        Raises:
            InvalidRequest: Nothing to continue, too long, too many choices, or asks for what the model cannot do.
        """
        if isinstance(payload, ChatPayload):
            _check_choices(payload.n, payload.n)
            return [self._chat(payload)]
        _check_choices(payload.n, payload.n * len(payload.prompts))
        if not payload.prompts:
            raise InvalidRequest("must hold at least one prompt", path="prompt")
        several = len(payload.prompts) > 1
        return [
            self._tokens(text, f"prompt[{at}]" if several else "prompt", specials=True)
            for at, text in enumerate(payload.prompts)
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, specials left out and spaces left alone."""
        # The tokenizer's own fast half: what transformers adds around it costs three times as much a token.
        decoder = getattr(self._tokenizer, "backend_tokenizer", self._tokenizer)
        text: str = decoder.decode(list(tokens), skip_special_tokens=True)
        return text

    def template_tokens(self) -> int:
        """Tokens that specials and template add at most, per message and once more per request; measured."""
        most = len(self._tokenizer("").input_ids)
        if self.has_template:
            for texts, rendered in self._renderings():
                content = sum(len(text) for text in texts)
                tokens = len(self._tokenizer(rendered, add_special_tokens=False).input_ids)
                added = tokens + TEMPLATE_MARGIN * len(texts) - 1
                if self.tokens_per_byte == 1:
                    added = min(added, len(rendered.encode()) - content)
                most = max(most, -(-added // (len(texts) + 1)))
        return most

    def _renderings(self) -> Iterator[tuple[list[str], str]]:
        """Conversations of one-letter messages as the template renders them; those it refuses are left out."""
        turns = ["user", "assistant"] * 4
        for roles in [[*start, *turns[:size]] for start in ([], ["system"]) for size in (1, 3, 7)]:
            try:
                yield ["x"] * len(roles), self._render([{"role": role, "content": "x"} for role in roles])
            except InvalidRequest:
                continue

    def _chat(self, payload: ChatPayload) -> Prompt:
        if not self.has_template:
            raise InvalidRequest("the model has no chat template; it takes completions only", path="messages")
        if payload.tools and payload.tool_choice != "none":
            raise InvalidRequest("this model does not call tools", path="tools")
        if payload.response_format and payload.response_format.get("type") != "text":
            raise InvalidRequest("only {'type': 'text'} is supported", path="response_format.type")
        if not payload.messages:
            raise InvalidRequest("must hold at least one message", path="messages")
        self._check_size(sum(len(message.text) for message in payload.messages), "messages")
        for at, message in enumerate(payload.messages):
            _check_unicode(message.text, f"messages[{at}].content")
        rendered = self._render([_plain(message, at) for at, message in enumerate(payload.messages)])
        return self._tokens(rendered, "messages", specials=False)

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of the model's makers, and may fail in any way
            raise InvalidRequest(f"the model's chat template refuses this: {error}", path="messages") from error
        return rendered

    def _tokens(self, text: str, path: str, *, specials: bool) -> Prompt:
        self._check_size(len(text), path)
        _check_unicode(text, path)
        tokens = tuple(self._tokenizer(text, add_special_tokens=specials, verbose=False).input_ids)
        if not tokens:
            raise InvalidRequest("is empty, and the model has no token that begins a text", path=path)
        if len(tokens) > self.limit:
            raise InvalidRequest(f"has {len(tokens)} tokens, the model takes at most {self.limit}", path=path)
        return Prompt(tokens, text)

    def _check_size(self, characters: int, path: str) -> None:
        """Refuse by size alone what would take long only to be counted."""
        least = characters // self._longest
        if least > self.limit:
            raise InvalidRequest(f"has at least {least} tokens, the model takes at most {self.limit}", path=path)


def _check_choices(n: int, choices: int) -> None:
    if n < 1:
        raise InvalidRequest(f"must be at least 1, not {n}", path="n")
    if choices > MAX_CHOICES:
        raise InvalidRequest(f"{choices} choices are asked for, at most {MAX_CHOICES} are made", path="n")


def _check_unicode(text: str, path: str) -> None:
    """Refuse half of a surrogate pair, which JSON can carry and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"is not valid Unicode at character {error.start}", path=path) from error


def _plain(message: Message, at: int) -> dict[str, str]:
    """A message as templates take it. Images and audio are refused by their place."""
    for place, part in enumerate(() if isinstance(message.content, str) else message.content):
        if not isinstance(part, TextPart):
            raise InvalidRequest("this model takes text only", path=f"messages[{at}].content[{place}]")
    return {"role": "system" if message.role == "developer" else message.role, "content": message.text}


def _tokens_per_byte(tokenizer: Any) -> int:
    """1 where tokens are made of bytes and nothing is normalised before; 3 with NFC; else what NFKC may do."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return NORMALISED_GROWTH
    document = json.loads(backend.to_str())
    before = json.dumps(document.get("pre_tokenizer"))
    if (
        document["model"].get("type") != "BPE"
        or '"ByteLevel"' not in before
        or '"add_prefix_space": true' in before
    ):
        return NORMALISED_GROWTH
    normalizer: dict[str, Any] = document.get("normalizer") or {}
    return {None: 1, "NFC": NFC_GROWTH}.get(normalizer.get("type"), NORMALISED_GROWTH)

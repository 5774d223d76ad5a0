from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    ImagePart,
    InferenceRequest,
    InvalidRequest,
    Message,
    ModelSpec,
    TextPart,
    Tool,
)
from headgate_torch.backend import TorchBackend
from headgate_torch.model import TorchModel
from headgate_torch.prompts import Prompts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Make = Callable[..., Any]

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}<|begin|>system\n"
    "You are a helpful assistant.<|end|>\n{% endif %}<|begin|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


def user(*texts: str) -> ChatPayload:
    return ChatPayload(messages=tuple(Message(role="user", content=text) for text in texts))


@pytest.fixture
def prompts(tokenizer: Any) -> Prompts:
    return Prompts(tokenizer, 100)


def other_tokenizer(tokenizer: Any, template: str | None) -> Any:
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|begin|>")
    copy.chat_template = template
    return copy


def test_a_conversation_is_rendered_by_the_models_template(prompts: Prompts, tokenizer: Any) -> None:
    (prompt,) = prompts.encode(user("And God", "said"))
    assert prompt.tokens == tuple(tokenizer("And God\nsaid").input_ids)


def test_a_plain_prompt_has_the_models_specials_and_keeps_its_spaces(prompts: Prompts, tokenizer: Any) -> None:
    (prompt,) = prompts.encode(CompletionPayload(prompts=("  a ",)))
    assert prompt.tokens[0] == tokenizer.bos_token_id
    assert prompts.decode(prompt.tokens) == "  a "


@pytest.mark.parametrize(
    ("payload", "path", "says"),
    [
        (ChatPayload(messages=()), "messages", "at least one"),
        (CompletionPayload(prompts=()), "prompt", "at least one"),
        (CompletionPayload(prompts=("x y " * 80,)), "prompt", r"has \d+ tokens, the model takes at most 100"),
        (CompletionPayload(prompts=("a", "x y " * 80)), "prompt[1]", "tokens"),
        (CompletionPayload(prompts=("a" * 5_000_000,)), "prompt", "at least"),
        (user("x y " * 80), "messages", r"has \d+ tokens"),
        (user("a" * 5_000_000), "messages", "at least"),
        (CompletionPayload(prompts=("a",) * 20, n=7), "n", "140 choices"),
        (
            ChatPayload(messages=(Message(role="user", content=(TextPart("a"), ImagePart("https://x"))),)),
            "messages[0].content[1]",
            "text only",
        ),
        (ChatPayload(messages=user("a").messages, tools=(Tool(name="f"),)), "tools", "tools"),
        (
            ChatPayload(messages=user("a").messages, response_format={"type": "json_object"}),
            "response_format.type",
            "text",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_field(
    prompts: Prompts, payload: ChatPayload | CompletionPayload, path: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        prompts.encode(payload)
    assert caught.value.path == path


def test_tools_that_must_not_be_called_are_no_reason_to_refuse(prompts: Prompts) -> None:
    payload = ChatPayload(messages=user("a").messages, tools=(Tool(name="f"),), tool_choice="none")
    assert prompts.encode(payload)


def test_without_a_template_chat_is_refused_in_words(tokenizer: Any) -> None:
    prompts = Prompts(other_tokenizer(tokenizer, None), 100)
    with pytest.raises(InvalidRequest, match="no chat template"):
        prompts.encode(user("a"))
    assert prompts.encode(CompletionPayload(prompts=("a",)))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('roles must alternate') }}", "{{ messages[9].content.x }}"]
)
def test_what_the_template_refuses_is_the_callers_fault(tokenizer: Any, template: str) -> None:
    prompts = Prompts(other_tokenizer(tokenizer, template), 100)
    with pytest.raises(InvalidRequest, match="template") as caught:
        prompts.encode(user("a"))
    assert caught.value.path == "messages"


def test_a_template_cannot_reach_out_of_its_sandbox(tokenizer: Any) -> None:
    prompts = Prompts(other_tokenizer(tokenizer, "{{ ''.__class__.__mro__[1].__subclasses__() }}"), 100)
    with pytest.raises(InvalidRequest, match="template"):
        prompts.encode(user("a"))


def test_an_empty_prompt_needs_a_token_to_begin_with(prompts: Prompts) -> None:
    assert prompts.encode(CompletionPayload(prompts=("",)))[0].tokens == (0,)
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.train_from_iterator(["a b"], trainers.BpeTrainer(show_progress=False))
    with pytest.raises(InvalidRequest, match="is empty"):
        Prompts(PreTrainedTokenizerFast(tokenizer_object=bare), 100).encode(CompletionPayload(prompts=("",)))


@pytest.mark.parametrize(
    ("normalizer", "growth"),
    [(None, 1), (normalizers.NFC(), 3), (normalizers.NFKC(), 11), (normalizers.Strip(), 11)],
)
def test_tokens_per_byte_follow_the_normalisation(normalizer: Any, growth: int) -> None:
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        bare.normalizer = normalizer
    assert Prompts(PreTrainedTokenizerFast(tokenizer_object=bare), 100).tokens_per_byte == growth


TEXTS = st.text(max_size=30) | st.sampled_from(["", "\n", "  \n ", "user\n", "<|end|>", "é" * 9, "the LORD"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=8), system=st.booleans(), template=st.sampled_from([None, CHATML])
)
def test_no_request_consumes_more_than_its_bound(
    loaded: TorchModel, tokenizer: Any, texts: list[str], system: bool, template: str | None
) -> None:
    prompts = Prompts(other_tokenizer(tokenizer, template or tokenizer.chat_template), 10_000)
    import msgspec

    info = msgspec.structs.replace(loaded.info, template_tokens=prompts.template_tokens())
    roles: list[Any] = ["system" if system and not at else "user" for at in range(len(texts))]
    chat = ChatPayload(
        messages=tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=True)), n=3
    )
    plain = CompletionPayload(prompts=tuple(texts), n=2)
    for payload in (chat, plain):
        try:
            used = sum(len(prompt.tokens) for prompt in prompts.encode(payload))
        except InvalidRequest:
            continue
        request = InferenceRequest(id="req_1", model="m", payload=payload, max_output=7)
        bound = TorchBackend().bound(request, ModelSpec(id="m", task="chat", backend="torch"), info)
        assert bound is not None
        assert used <= bound.input
        assert bound.output == 7 * (3 if payload is chat else 2 * len(texts))


def test_the_bound_is_close_for_the_shipped_model(loaded: TorchModel, chat: Make) -> None:
    request = chat("And the king said unto", most=10)
    bound = TorchBackend().bound(request, ModelSpec(id="m", task="chat", backend="torch"), loaded.info)
    assert bound is not None
    assert bound.input <= len("And the king said unto") + 16
    assert math.isclose(bound.output, 10)

from __future__ import annotations

import pytest
from headgate_gateway.domain.admission import Principal
from headgate_gateway.inference.bounds import Bound, bound_of, output_limit
from headgate_gateway.settings import Model
from headgate_plugin_api import (
    ChatPayload,
    ClassifyPayload,
    CompletionPayload,
    EmbedPayload,
    FilePart,
    ImagePart,
    InferenceRequest,
    InferPayload,
    InvalidRequest,
    Message,
    ModelInfo,
    Part,
    Payload,
    RerankPayload,
    Tensor,
    TextPart,
    Tool,
    Usage,
)
from msgspec.structs import replace

INFO = ModelInfo(tokens_per_byte=1, template_tokens=10)
ANYONE = Principal(key_id="k", project_id="p", organization_id="o", budgeted=True)


def bound(
    payload: Payload,
    *,
    info: ModelInfo | None = INFO,
    own: Usage | None = None,
    asked: int | None = None,
    stream: bool = False,
    who: Principal = ANYONE,
    **settings: object,
) -> Bound:
    request = InferenceRequest(id="r", model="m", payload=payload, max_output=asked, stream=stream)
    model = Model(id="m", task=request.task, **settings)  # type: ignore[arg-type]
    request = replace(request, max_output=output_limit(request, model, info, who))
    return bound_of(request, model, info, own, who, asked=asked is not None)


def chat(*texts: str, **more: object) -> ChatPayload:
    return ChatPayload(messages=tuple(Message(role="user", content=text) for text in texts), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("payload", "tokens"),
    [
        (chat("abc", "däs"), 7 + 30),
        (chat("😀"), 4 + 20),
        (CompletionPayload(prompts=("ab", "cd")), 4 + 30),
        (EmbedPayload(inputs=("abc", (1, 2, 3, 4, 5))), 3 + 5 + 30),
        (RerankPayload(query="qq", documents=("abc", "d")), 4 + 2 * 2 + 30),
        (ClassifyPayload(inputs=("abc", ("d", "ef"))), 6 + 30),
        (InferPayload(inputs=(Tensor(name="x", datatype="UINT8", shape=(4,), data=b"1234"),)), 0),
    ],
)
def test_input_is_bytes_and_template(payload: Payload, tokens: int):
    assert bound(payload).usage.input == tokens


def test_unknown_tokenizers_are_bounded_by_eleven_tokens_a_byte():
    assert bound(chat("abc"), info=None).usage.input == 33 + 128


def test_what_a_model_can_read_is_a_bound_too():
    info = replace(INFO, max_input_tokens=100)
    assert bound(chat("x" * 5_000), info=info).usage.input == 100
    assert bound(EmbedPayload(inputs=("x" * 5_000, "y" * 5_000)), info=info).usage.input == 200


def test_tools_may_grow_in_the_template():
    tool = Tool(name="f", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
    assert bound(chat("abc", tools=(tool,))).usage.input > bound(chat("abc")).usage.input + 200


@pytest.mark.parametrize("part", [ImagePart("https://x/y.png"), FilePart({"file_id": "f"})])
def test_images_and_files_need_a_key_without_budget(part: Part):
    payload = ChatPayload(messages=(Message(role="user", content=(TextPart("look"), part)),))
    with pytest.raises(InvalidRequest) as caught:
        bound(payload)
    assert caught.value.path == "messages[0].content[1]"
    assert bound(payload, who=replace(ANYONE, budgeted=False)).usage.input > 40_000
    assert bound(payload, own=Usage(input=900, output=10)).usage.input == 900


@pytest.mark.parametrize(
    ("asked", "settings", "info", "key", "limit"),
    [
        (None, {}, None, None, 4096),
        (None, {"default_output": 77}, None, None, 77),
        (100, {}, None, None, 100),
        (100, {"max_output_tokens": 60}, None, None, 60),
        (100, {}, 50, None, 50),
        (100, {"max_output_tokens": 60}, 50, 40, 40),
    ],
)
def test_the_lowest_output_limit_counts(asked, settings, info, key, limit):
    found = bound(
        chat("x", n=3),
        asked=asked,
        info=replace(INFO, max_output_tokens=info),
        who=replace(ANYONE, max_output=key),
        **settings,
    )
    assert (found.limit, found.choices, found.most) == (limit, 3, 3 * limit)


def test_tasks_without_output_have_none():
    found = bound(EmbedPayload(inputs=("x",)))
    assert (found.limit, found.most, found.least) == (None, 0, 0)


def test_what_a_request_is_worth_running_with():
    """Streams start with a token a choice; whole answers want all that was asked, but not all of a default."""
    assert bound(chat("x", n=2), asked=500, stream=True).least == 2
    assert bound(chat("x"), asked=500).least == 500
    assert bound(chat("x")).least == 1


def test_a_backend_that_knows_the_length_is_not_served_with_less():
    found = bound(chat("a b"), own=Usage(input=2, output=2))
    assert (found.usage.input, found.most, found.least, found.usage.requests) == (2, 2, 2, 1)
    assert bound(chat("a b"), own=Usage(input=2, output=9_999)).most == 4096

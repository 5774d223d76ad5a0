import pytest
from headgate_engine.estimate import estimated_tokens
from headgate_plugin_api import (
    ChatPayload,
    ClassifyPayload,
    CompletionPayload,
    EmbedPayload,
    InferenceRequest,
    InferPayload,
    Message,
    Payload,
    RerankPayload,
    Tensor,
)


@pytest.mark.parametrize(
    ("payload", "tokens"),
    [
        (
            ChatPayload(
                messages=(Message(role="user", content="x" * 40), Message(role="user", content="x" * 40))
            ),
            21,
        ),
        (CompletionPayload(prompts=("x" * 40, "x" * 40)), 21),
        (EmbedPayload(inputs=("x" * 40, (1, 2, 3))), 14),
        (EmbedPayload(inputs=()), 1),
        (RerankPayload(query="x" * 20, documents=("x" * 20, "x" * 20)), 21),
        (ClassifyPayload(inputs=("x" * 40, ("x" * 20, "x" * 20))), 21),
        (InferPayload(inputs=(Tensor(name="x", datatype="FP32", shape=(10,), data=bytes(40)),)), 11),
    ],
)
def test_a_guess_for_every_payload(payload: Payload, tokens: int) -> None:
    assert estimated_tokens(InferenceRequest(id="r", model="m", payload=payload)) == tokens

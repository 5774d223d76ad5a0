"""What the tests of the torch backend share: the shipped model, a random one, a stand-in for the step loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    Event,
    Finished,
    InferenceRequest,
    Message,
    ModelInfo,
    ModelSpec,
    Sampling,
    TextDelta,
    Usage,
    UsageReport,
)
from headgate_torch.backend import TorchBackend
from headgate_torch.batch import Batch
from headgate_torch.model import TorchModel
from headgate_torch.prompts import Prompts
from headgate_torch.sampling import Defaults
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

TINY_LM = Path(__file__).parents[2] / "examples" / "models" / "tiny-lm"

torch.set_num_threads(1)


@dataclass
class Answer:
    """The fold of one request's events."""

    events: list[Event]
    error: Exception | None = None

    def text(self, index: int = 0) -> str:
        return "".join(
            event.text for event in self.events if isinstance(event, TextDelta) and event.index == index
        )

    def tokens(self, index: int = 0) -> int:
        deltas = [event for event in self.events if isinstance(event, TextDelta) and event.index == index]
        return sum(delta.tokens or 0 for delta in deltas)

    def reason(self, index: int = 0) -> str:
        (finished,) = [e for e in self.events if isinstance(e, Finished) and e.index == index]
        return finished.reason

    @property
    def usage(self) -> Usage:
        assert isinstance(self.events[-1], UsageReport), "the usage comes last"
        return self.events[-1].usage


class Loop:
    """What the host does with a step model, without its threads: admits when told, steps until all is done."""

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        self.answers: dict[str, Answer] = {}
        self.running: set[str] = set()

    def admit(self, *requests: InferenceRequest) -> None:
        for request in requests:
            assert self.model.room > 0
            self.model.admit(request)
            self.answers[request.id] = Answer([])
            self.running.add(request.id)

    def step(self) -> None:
        for output in self.model.step():
            assert output.request_id in self.running, "nothing may follow the end of an answer"
            answer = self.answers[output.request_id]
            answer.events += output.events
            answer.error = output.error
            if output.done or output.error is not None:
                self.running.discard(output.request_id)

    def finish(self) -> dict[str, Answer]:
        for _ in range(5000):
            if not self.running:
                return self.answers
            self.step()
        raise AssertionError(f"still running: {self.running}")


@pytest.fixture
def loop() -> type[Loop]:
    return Loop


@pytest.fixture
def ask() -> Callable[[TorchModel, InferenceRequest], Answer]:
    """Run one request alone; its failure is raised."""

    def ask(model: TorchModel, request: InferenceRequest) -> Answer:
        loop = Loop(model)
        loop.admit(request)
        answer = loop.finish()[request.id]
        if answer.error is not None:
            raise answer.error
        return answer

    return ask


@pytest.fixture
def completion() -> Callable[..., InferenceRequest]:
    """Make a completion request; keywords that Sampling knows go there."""

    def make(*prompts: str, request_id: str = "req_1", most: int | None = 20, n: int = 1, echo: bool = False,
             options: dict[str, Any] | None = None, **sampling: Any) -> InferenceRequest:  # fmt: skip
        payload = CompletionPayload(prompts=prompts, n=n, echo=echo, sampling=Sampling(**sampling))
        return InferenceRequest(id=request_id, model="m", payload=payload, max_output=most, options=options or {})

    return make


@pytest.fixture
def chat() -> Callable[..., InferenceRequest]:
    def make(*texts: str, request_id: str = "req_1", most: int = 20, n: int = 1, **more: Any) -> InferenceRequest:
        roles = ["user", "assistant"] * len(texts)
        messages = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))
        sampling = {name: more.pop(name) for name in list(more) if name in Sampling.__struct_fields__}
        payload = ChatPayload(messages=messages, n=n, sampling=Sampling(**sampling), **more)
        return InferenceRequest(id=request_id, model="m", payload=payload, max_output=most)

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY_LM)


@pytest.fixture(scope="session")
def network() -> LlamaForCausalLM:
    """A random Llama. Large and untied weights, so that a wrong position or a stale key changes its text."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.25, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def build(tokenizer: Any) -> Callable[..., TorchModel]:
    """Put a network under the step loop, as loading does, without files."""

    def build(
        network: Any, *, rows: int = 8, context: int = 128, ends: Sequence[int] = (1,), **more: Any
    ) -> TorchModel:
        prompts = Prompts(tokenizer, context - 1)
        info = ModelInfo(
            max_input_tokens=prompts.limit, max_output_tokens=context - 1, tokens_per_byte=prompts.tokens_per_byte
        )
        return TorchModel(
            Batch(network, torch.device("cpu")), prompts, info, ends=frozenset(ends),
            defaults=more.pop("defaults", Defaults()), context=context, max_requests=rows, **more,
        )  # fmt: skip

    return build


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return ModelSpec(id="tiny-lm", task="chat", backend="torch", source=str(TINY_LM), device="cpu")


@pytest.fixture(scope="session")
def loaded(spec: ModelSpec) -> TorchModel:
    """The shipped model. Tests leave it without requests."""
    model = TorchBackend().load(spec, lambda progress: None)
    assert isinstance(model, TorchModel)
    return model

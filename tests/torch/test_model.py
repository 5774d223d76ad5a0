from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from headgate_plugin_api import InvalidRequest, TextDelta, UpstreamFailed, Usage
from headgate_torch.model import TorchModel
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.25, "tie_word_embeddings": False,
    "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
TEXT = "In the beginning God created the heaven and the earth and saw that it was good in those days"
WORDS = TEXT.split()

NEAR_TIE = 1e-3
"""Where the two best scores are closer than this, rounding may decide between them."""

Make = Callable[..., Any]


def oracle(network: Any, tokens: list[int], most: int) -> tuple[list[int], list[float]]:
    """What transformers itself makes greedily, and how clear each choice was."""
    made = network.generate(
        torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long), do_sample=False,
        max_new_tokens=most, output_scores=True, return_dict_in_generate=True, pad_token_id=2,
    )  # fmt: skip
    gaps = [(best[0] - best[1]).item() for best in (scores[0].topk(2).values for scores in made.scores)]
    return made.sequences[0, len(tokens) :].tolist(), gaps


def prompts(count: int, seed: int = 3) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 25))) for _ in range(count)]


def assert_greedy_like_generate(
    model: TorchModel, network: Any, tokenizer: Any, loop: Any, completion: Make
) -> None:
    """Requests that come one by one and decode side by side say what `generate` says to each alone."""
    host = loop(model)
    asked = {}
    for at, text in enumerate(prompts(14)):
        request = completion(
            text, request_id=f"req_{at}", most=3 + at * 2, temperature=0, options={"ignore_eos": True}
        )
        asked[request.id] = (text, request.max_output)
        while model.room == 0:
            host.step()
        host.admit(request)
        if at % 3:
            host.step()
    network.generation_config.eos_token_id = None
    for request_id, answer in host.finish().items():
        assert answer.error is None
        text, most = asked[request_id]
        ids = tokenizer(text).input_ids
        expected, gaps = oracle(network, ids, most)
        assert answer.usage == Usage(input=len(ids), output=most)
        before = tokenizer.decode(ids[-6:], skip_special_tokens=True)
        whole = tokenizer.decode(ids[-6:] + expected, skip_special_tokens=True)[len(before) :]
        if answer.text() != whole:
            same = next(at for at, (a, b) in enumerate(zip(answer.text(), whole, strict=False)) if a != b)
            sure = next(i for i in range(most) if len(tokenizer.decode(expected[: i + 1])) > same)
            assert min(gaps[: sure + 1]) < NEAR_TIE, f"{answer.text()!r} != {whole!r}"


NETWORKS: list[Any] = [
    pytest.param(lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), id="llama"),
    pytest.param(lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)), id="mistral-window"),
    pytest.param(
        lambda: Qwen2ForCausalLM(
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)
        ),
        id="qwen2-hybrid-window",
    ),
    pytest.param(
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=8)), id="gemma2-softcap-hybrid"
    ),
    pytest.param(
        lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=2048, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.25,
                bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
            )
        ),
        id="gpt2-learned-positions",
    ),
]  # fmt: skip


@pytest.mark.parametrize("make", NETWORKS)
def test_batched_greedy_text_is_what_generate_makes(
    make: Make, build: Make, tokenizer: Any, loop: Any, completion: Make
) -> None:
    torch.manual_seed(11)
    network = make().eval()
    assert_greedy_like_generate(build(network, rows=6), network, tokenizer, loop, completion)


def late(inputs: dict[str, Any]) -> None:
    """Positions of decoded tokens are off by one."""
    if inputs["position_ids"].shape[1] == 1:
        inputs["position_ids"] = inputs["position_ids"] + 1


def unmasked(inputs: dict[str, Any]) -> None:
    """Rows see the padding on their left."""
    inputs.pop("attention_mask", None)


def stale(inputs: dict[str, Any]) -> None:
    """One key of the cache is another row's."""
    for layer in inputs["past_key_values"].layers:
        if layer.is_initialized and len(layer.keys) > 1:
            layer.keys[:, :, -1] = layer.keys[:1, :, -1]


@pytest.mark.parametrize("mistake", [late, unmasked, stale])
def test_that_test_notices(
    mistake: Callable[[dict[str, Any]], None],
    network: Any,
    build: Make,
    tokenizer: Any,
    loop: Any,
    completion: Make,
) -> None:
    model = build(network, rows=6)

    class Mistaken:
        config = network.config

        def __call__(self, **inputs: Any) -> Any:
            mistake(inputs)
            return network(**inputs)

    model._batch.model = Mistaken()
    with pytest.raises(AssertionError, match="!="):
        assert_greedy_like_generate(model, network, tokenizer, loop, completion)


def test_a_seeded_answer_is_the_same_alone_and_beside_others(
    loaded: TorchModel, loop: Any, ask: Make, chat: Make
) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.8, "seed": 1},
        {"temperature": 0},
        {"top_p": 0.9, "seed": 2},
        {"top_k": 12, "seed": 3, "frequency_penalty": 0.5},
    ]
    requests = [
        chat(text, request_id=f"req_{at}", most=30, **kinds[at % 4])
        for at, text in enumerate(prompts(12, seed=5))
    ]
    alone = {request.id: ask(loaded, request).text() for request in requests}
    host = loop(loaded)
    for request in requests:
        host.admit(request)
        host.step()
    assert {request_id: answer.text() for request_id, answer in host.finish().items()} == alone


def test_without_a_seed_answers_differ(loaded: TorchModel, ask: Make, chat: Make) -> None:
    texts = {ask(loaded, chat("And it came to pass", most=25, temperature=1.0)).text() for _ in range(3)}
    assert len(texts) > 1


def test_every_choice_of_every_prompt_is_made_and_prompts_are_counted_once(
    loaded: TorchModel, ask: Make, completion: Make, tokenizer: Any
) -> None:
    texts = ("And the king said", "Blessed are the")
    answer = ask(loaded, completion(*texts, n=12, most=10, seed=4))
    assert answer.usage.input == sum(len(tokenizer(text).input_ids) for text in texts)
    assert answer.usage.output == sum(answer.tokens(index) for index in range(24)) <= 240
    assert len({answer.text(index) for index in range(12)}) > 6, "choices draw for themselves"
    single = ask(loaded, completion(texts[0], n=1, most=10, seed=4))
    assert single.text() == answer.text(0)


def test_echo_gives_the_prompt_first_and_unbilled(loaded: TorchModel, ask: Make, completion: Make) -> None:
    answer = ask(loaded, completion("In the beginning ", echo=True, most=5))
    assert answer.events[0] == TextDelta(text="In the beginning ", index=0, tokens=0)
    assert answer.tokens() == answer.usage.output


def test_a_stop_string_ends_the_answer_before_it(loaded: TorchModel, ask: Make, chat: Make) -> None:
    free = ask(loaded, chat("And God said", most=60, seed=8))
    middle = free.text()[40:47]
    stopped = ask(loaded, chat("And God said", most=60, seed=8, stop=(middle, "@@")))
    assert stopped.text() == free.text()[: free.text().index(middle)]
    assert stopped.reason() == "stop"
    assert stopped.usage.output < free.usage.output
    assert stopped.tokens() == stopped.usage.output


def test_the_end_token_ends_the_answer(
    network: Any, build: Make, ask: Make, completion: Make, tokenizer: Any
) -> None:
    ids = tokenizer("and God saw").input_ids
    made, _ = oracle(network, ids, 8)
    end = next(token for at, token in enumerate(made) if at >= 3 and token not in made[:at])
    answer = ask(build(network, ends=[end]), completion("and God saw", temperature=0))
    assert answer.reason() == "stop"
    assert answer.usage.output == made.index(end) + 1, "the end token was made, so it counts"
    assert answer.text() == tokenizer.decode(made[: made.index(end)])
    on = ask(build(network, ends=[end]), completion("and God saw", temperature=0, options={"ignore_eos": True}))
    assert on.usage.output == 20


def test_an_answer_ends_where_the_context_does(network: Any, build: Make, ask: Make, completion: Make) -> None:
    answer = ask(build(network, context=40, ends=[]), completion("a b c", most=1000))
    assert answer.reason() == "length"
    assert answer.usage.prompt_tokens + answer.usage.output == 40


def test_without_a_limit_the_model_s_own_holds(network: Any, build: Make, ask: Make, completion: Make) -> None:
    answer = ask(build(network, context=30, ends=[]), completion("a", most=None))
    assert answer.usage.prompt_tokens + answer.usage.output == 30


def test_cancelling_frees_the_place_and_says_what_was_consumed(
    loaded: TorchModel, loop: Any, chat: Make, tokenizer: Any
) -> None:
    host = loop(loaded)
    whole = loaded.room
    host.admit(
        chat("And he went", request_id="req_1", most=400),
        chat("And she said", request_id="req_2", most=6, temperature=0),
    )
    host.step()
    host.step()
    assert loaded.room == whole - 2
    usage = loaded.cancel("req_1")
    host.running.discard("req_1")
    assert usage == Usage(input=len(tokenizer("And he went").input_ids), output=2)
    assert loaded.room == whole - 1
    assert loaded.cancel("req_1") is None
    assert host.finish()["req_2"].usage.output <= 6
    assert loaded.room == whole
    assert len(loaded._batch) == 0


def test_one_that_waits_for_a_row_can_be_cancelled(
    network: Any, build: Make, loop: Any, completion: Make
) -> None:
    model = build(network, rows=2)
    host = loop(model)
    host.admit(completion("a", request_id="req_1", n=5, most=4), completion("b", request_id="req_2", n=5, most=4))
    host.step()
    assert model.cancel("req_2") == Usage(input=2, output=0)
    host.running.discard("req_2")
    assert host.finish()["req_1"].usage.output == 20


def test_many_choices_do_not_shut_others_out(network: Any, build: Make, loop: Any, completion: Make) -> None:
    model = build(network, rows=2, ends=[])
    host = loop(model)
    host.admit(completion("a", request_id="req_many", n=60, most=4))
    host.step()
    host.admit(completion("b", request_id="req_one", most=4))
    for _ in range(10):
        host.step()
    assert host.running == {"req_many"}
    assert host.finish()["req_many"].usage.output == 240


def test_text_flows_while_it_is_made(loaded: TorchModel, loop: Any, chat: Make) -> None:
    host = loop(loaded)
    host.admit(chat("And the LORD", most=30, seed=1))
    for _ in range(10):
        host.step()
    deltas = [event for event in host.answers["req_1"].events if isinstance(event, TextDelta)]
    assert len(deltas) >= 8
    host.finish()


class Failing:
    """A network that fails as it is told: by an exception, or by scores that are not numbers."""

    def __init__(self, network: Any, *, when: Callable[[dict[str, Any]], bool], how: str) -> None:
        self.network, self.when, self.how, self.config = network, when, how, network.config

    def __call__(self, **inputs: Any) -> Any:
        wrong = self.when(inputs)
        result = self.network(**inputs)
        if wrong and self.how == "raise":
            raise RuntimeError("out of memory")
        if wrong:
            result.logits[(inputs["input_ids"] == 777).any(dim=1)] = float("nan")
        return result


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_a_request_that_fails_leaves_the_others_alone(
    how: str, where: str, network: Any, build: Make, loop: Any, completion: Make, ask: Make
) -> None:
    requests = [
        completion(text, request_id=f"req_{at}", most=12, temperature=0, options={"ignore_eos": True})
        for at, text in enumerate(["the heaven", "the earth and", "it was good", "days"])
    ]
    expected = {request.id: ask(build(network), request).text() for request in requests}
    model = build(network)
    host = loop(model)
    host.admit(*requests)
    if where == "decode":
        host.step()
        host.step()
        model._rows[2].last = 777
    else:
        object.__setattr__(model._pending[2].prompt, "tokens", (777, 5))
    model._batch.model = Failing(network, when=lambda inputs: bool((inputs["input_ids"] == 777).any()), how=how)
    answers = host.finish()
    assert isinstance(answers.pop("req_2").error, UpstreamFailed if how == "nan" else RuntimeError)
    assert {request_id: answer.text() for request_id, answer in answers.items()} == {
        request_id: text for request_id, text in expected.items() if request_id != "req_2"
    }
    assert model.room == 8
    assert len(model._batch) == 0


def test_a_request_of_many_choices_fails_as_a_whole(
    network: Any, build: Make, loop: Any, completion: Make
) -> None:
    model = build(network, rows=2)
    host = loop(model)
    host.admit(completion("a b", request_id="req_1", n=4, most=9), completion("c", request_id="req_2", most=9))
    host.step()
    model._rows[0].last = 777
    model._batch.model = Failing(
        network, when=lambda inputs: bool((inputs["input_ids"] == 777).any()), how="raise"
    )
    answers = host.finish()
    assert isinstance(answers["req_1"].error, RuntimeError)
    assert answers["req_2"].error is None
    assert model.room == 2


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"most": 0}, "max_tokens"),
        ({"most": -5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"options": {"speed": 1}}, "options.speed"),
        ({"options": {"ignore_eos": "yes"}}, "options.ignore_eos"),
    ],
)
def test_a_refused_request_names_the_field_and_leaves_nothing(
    change: dict[str, Any], path: str, loaded: TorchModel, completion: Make
) -> None:
    before = loaded.room
    with pytest.raises(InvalidRequest) as caught:
        loaded.admit(completion("a", **change))
    assert caught.value.path == path
    assert loaded.room == before
    assert not loaded._pending


def test_an_id_that_runs_already_is_refused(loaded: TorchModel, loop: Any, completion: Make) -> None:
    host = loop(loaded)
    host.admit(completion("a", most=2))
    with pytest.raises(InvalidRequest, match="already"):
        loaded.admit(completion("b", most=2))
    assert host.finish()["req_1"].error is None


def test_closing_drops_everything(network: Any, build: Make, loop: Any, completion: Make) -> None:
    model = build(network)
    loop(model).admit(completion("a"))
    model.step()
    model.close()
    assert model.room == 8

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from headgate_plugin_api import InvalidRequest, Sampling
from headgate_torch.sampling import Defaults, Drawer, Rule, check, draw
from hypothesis import given
from hypothesis import strategies as st


def rule(**sampling: Any) -> Rule:
    return check(Sampling(**sampling), Defaults())


def drawer(seed: int = 0, choice: int = 0, **sampling: Any) -> Drawer:
    return Drawer.seeded(rule(**sampling), seed, choice)


@pytest.mark.parametrize(
    ("sampling", "path"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": -1.0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": math.nan}, "frequency_penalty"),
        ({"stop": ("",)}, "stop[0]"),
        ({"stop": ("a", "b" * 257)}, "stop[1]"),
        ({"stop": ("a",) * 17}, "stop"),
    ],
)
def test_a_number_out_of_range_names_its_field(sampling: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rule(**sampling)
    assert caught.value.path == path


def test_the_models_defaults_hold_where_a_request_is_silent() -> None:
    defaults = Defaults.read({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": None})
    assert defaults == Defaults(temperature=0.6, top_p=1.0, top_k=20)
    assert check(Sampling(top_k=5), defaults) == Rule(0.6, 1.0, 5, 0.0, 0.0, (), None)
    assert Defaults.read({}) == Defaults(1.0, 1.0, 0)
    assert Defaults.read({"do_sample": False, "temperature": 0.6}).temperature == 0.0


def draws(logits: torch.Tensor, count: int, **sampling: Any) -> list[int | None]:
    return draw(logits.expand(count, -1), [drawer(seed, **sampling) for seed in range(count)])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf])
    count = 4000
    drawn = torch.bincount(torch.tensor(draws(logits, count, temperature=temperature)), minlength=5) / count
    expected = (logits / temperature).softmax(0)
    # Five standard deviations of a share of 4000 draws.
    assert (drawn - expected).abs().max() < 5 * math.sqrt(0.25 / count)
    assert drawn[4] == 0


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draws(logits, 300, top_k=2)) == {0, 1}
    assert set(draws(logits, 300, top_p=0.6)) == {0, 1}
    assert set(draws(logits, 300, top_p=0.81)) == {0, 1, 2}
    assert set(draws(logits, 50, top_p=0.0)) == {0}
    assert set(draws(logits, 50, top_k=1)) == {0}
    assert set(draws(logits, 50, top_k=-1)) <= {0, 1, 2, 3}


def test_a_cut_leaves_the_proportions_of_what_stays() -> None:
    logits = torch.tensor([0.05, 0.5, 0.25, 0.2]).log()
    drawn = draws(logits, 3000, top_k=2)
    assert abs(drawn.count(1) / 3000 - 2 / 3) < 0.05


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-4, 0.01])
def test_cold_is_argmax_and_never_a_nan(temperature: float) -> None:
    logits = torch.tensor([3e38, 1.0, -3e38, -math.inf])
    assert set(draws(logits, 20, temperature=temperature)) == {0}


def test_a_row_without_numbers_is_reported_and_its_neighbours_are_not_touched() -> None:
    sound = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    broken = sound.clone()
    broken[1, 7] = math.nan
    for cut in ({}, {"top_p": 0.9}, {"temperature": 0}):
        expected = draw(sound, [drawer(seed, **cut) for seed in range(3)])
        found = draw(broken, [drawer(seed, **cut) for seed in range(3)])
        assert found == [expected[0], None, expected[2]]
    broken[1, 7] = math.inf
    assert draw(broken, [drawer(seed) for seed in range(3)])[1] is None


def test_a_row_draws_the_same_beside_others_as_alone() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.8}, {"temperature": 0}, {"top_k": 7, "temperature": 1.7}]
    together = [drawer(9, at, **kind) for at, kind in enumerate(kinds)]
    alone = [drawer(9, at, **kind) for at, kind in enumerate(kinds)]
    for _ in range(30):
        expected = [draw(logits[at : at + 1], [alone[at]])[0] for at in range(4)]
        assert draw(logits, together) == expected


def test_seeds_and_choices_have_streams_of_their_own() -> None:
    logits = torch.zeros(1, 1000)

    def run(seed: int, choice: int) -> list[int | None]:
        one = drawer(seed, choice)
        return [draw(logits, [one])[0] for _ in range(8)]

    assert run(5, 0) == run(5, 0)
    assert run(-1, 0) == run(2**64 - 1, 0), "any integer is a seed"
    assert len({tuple(run(seed, choice)) for seed in (5, 6) for choice in (0, 1)}) == 4


def test_penalties_count_what_was_made() -> None:
    one = drawer(temperature=0, presence_penalty=0.5, frequency_penalty=0.4)
    logits = torch.tensor([[2.0, 1.2, 0.0]])
    made = []
    for _ in range(4):
        (token,) = draw(logits.clone(), [one])
        assert token is not None
        one.took(token)
        made.append(token)
    # 2.0 -> 1.1 after one 0; then 1 at 1.2 -> 0.3; then 0 at 1.1 -> 0.7; then 0 again.
    assert made == [0, 1, 0, 0]


def test_scores_are_not_changed_for_the_next_reader() -> None:
    logits = torch.tensor([[2.0, 1.2, 0.0]])
    one = drawer(temperature=0, presence_penalty=2.0)
    one.took(0)
    draw(logits, [one])
    assert logits.tolist() == torch.tensor([[2.0, 1.2, 0.0]]).tolist()


@given(
    logits=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1),
    top_k=st.integers(-1, 30),
    seed=st.integers(),
)
def test_any_rule_draws_a_token_that_exists(
    logits: list[float], temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    one = drawer(seed, temperature=temperature, top_p=top_p, top_k=top_k)
    (token,) = draw(torch.tensor([logits]), [one])
    assert token is not None
    assert 0 <= token < len(logits)

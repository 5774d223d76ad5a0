from __future__ import annotations

from headgate_onnx.tokens import parts
from hypothesis import given
from hypothesis import strategies as st


@given(lengths=st.lists(st.integers(1, 300), max_size=80), budget=st.integers(1, 4000))
def test_parts_hold_every_row_once_and_stay_in_budget(lengths: list[int], budget: int) -> None:
    split = parts(lengths, budget)
    assert sorted(place for part in split for place in part) == list(range(len(lengths)))
    for part in split:
        assert len(part) == 1 or max(lengths[place] for place in part) * len(part) <= budget


def test_short_rows_do_not_pay_for_long_ones() -> None:
    assert parts([200, 10, 200, 10, 200], 16_384) == [[0, 2, 4], [1, 3]]


def test_a_few_small_rows_share_a_pass() -> None:
    assert len(parts([20, 10, 5], 16_384)) == 1

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from headgate_onnx.tensors import NUMPY_TYPES, to_array, to_tensor
from headgate_plugin_api import Datatype, InvalidRequest, Tensor
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("datatype", sorted(NUMPY_TYPES))
def test_numbers_go_there_and_back(datatype: Datatype) -> None:
    array = np.array([[0, 1, 1], [1, 0, 0]], dtype=NUMPY_TYPES[datatype])
    tensor = to_tensor("x", datatype, array)
    assert tensor.shape == (2, 3)
    assert np.array_equal(to_array(tensor, "inputs[0]"), array)


@given(values=st.lists(st.text(max_size=20), max_size=10))
def test_strings_go_there_and_back(values: list[str]) -> None:
    array = np.array([*values, ""], dtype=object)[:-1]
    assert list(to_array(to_tensor("x", "BYTES", array), "inputs[0]")) == values


@pytest.mark.parametrize(
    ("tensor", "path", "message"),
    [
        (("FP32", (2, 2), b"\0" * 12), "inputs[0].data", "has 12 bytes; shape [2, 2] of FP32 needs 16"),
        (("FP32", (-1, 2), b""), "inputs[0].shape", "is [-1, 2]"),
        (("FP32", (1 << 40, 1 << 40), b""), "inputs[0].data", "needs"),
        (("INT8", (1,) * 40, b"\0"), "inputs[0].shape", "at most 32"),
        (("BF16", (1,), b"\0\0"), "inputs[0].datatype", "BF16 is not supported"),
        (("BYTES", (1,), b"\3\0\0\0ab"), "inputs[0].data", "is cut short"),
        (("BYTES", (1,), b"\3\0"), "inputs[0].data", "is cut short"),
        (("BYTES", (2,), b"\1\0\0\0a"), "inputs[0].data", "has 1 elements, its shape needs 2"),
        (("BYTES", (1,), b"\1\0\0\0\xff"), "inputs[0].data", "not UTF-8"),
    ],
)
def test_what_does_not_fit_is_named(tensor: Any, path: str, message: str) -> None:
    datatype, shape, data = tensor
    with pytest.raises(InvalidRequest) as caught:
        to_array(Tensor(name="x", datatype=datatype, shape=shape, data=data), "inputs[0]")
    assert caught.value.path == path
    assert message in caught.value.message

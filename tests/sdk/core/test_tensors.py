"""Tensors survive both ways, and what cannot travel is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from headgate._core import infer_wire, tensors
from headgate._core.clock import SYSTEM
from headgate._core.request import Call, Session
from headgate._core.retry import RetryPolicy
from headgate._transport.types import Received, Timeout
from headgate.errors import ResponseShapeError
from headgate.types.infer import OutputTensor
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DTYPES = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32"]
ARRAYS = st.sampled_from([*DTYPES, "float64"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_arrays_survive_as_bytes(array: Any) -> None:
    datatype, shape, data = tensors.describe("x", array)
    raw = tensors.to_bytes("x", datatype, data)
    output = OutputTensor(name="x", datatype=datatype, shape=list(shape))
    output.attach(raw)
    np.testing.assert_array_equal(output.numpy(), array)
    flat = tensors.from_bytes("x", datatype, shape, raw)
    np.testing.assert_array_equal(np.array(flat, dtype=array.dtype).reshape(shape), array)


@given(hnp.arrays("int32", hnp.array_shapes(max_dims=3, max_side=4)))
def test_nested_lists_are_what_their_array_is(array: Any) -> None:
    datatype, shape, flat = tensors.describe("x", array.tolist())
    assert (datatype, shape) == ("INT64", array.shape)
    assert tensors.nest(flat, shape) == array.tolist()
    assert tensors.from_bytes("x", "INT32", shape, tensors.to_bytes("x", "INT32", flat)) == flat


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_bytes_survive(items: list[bytes]) -> None:
    raw = tensors.to_bytes("x", "BYTES", items)
    assert tensors.from_bytes("x", "BYTES", [len(items)], raw) == items


@pytest.mark.parametrize(
    ("value", "datatype", "shape"),
    [
        (1.5, "FP32", ()),
        ([True, False], "BOOL", (2,)),
        ([1, 2.5], "FP32", (2,)),
        ([[1], [2]], "INT64", (2, 1)),
        ("text", "BYTES", ()),
        ([b"a"], "BYTES", (1,)),
        ([], "BOOL", (0,)),
        (np.array(["a", "b"]), "BYTES", (2,)),
    ],
)
def test_what_a_value_is(value: Any, datatype: str, shape: tuple[int, ...]) -> None:
    assert tensors.describe("x", value)[:2] == (datatype, shape)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3]], "ragged"),
        ([[1], 2], "ragged"),
        ([1, "a"], "found int, str"),
        ({"a": 1}, "expected numbers"),
        (np.zeros(1, dtype="complex64"), "complex64"),
    ],
)
def test_what_cannot_travel(value: Any, message: str) -> None:
    with pytest.raises(tensors.TensorError, match=f"weights: .*{message}"):
        tensors.describe("weights", value)


def test_what_json_cannot_carry() -> None:
    with pytest.raises(tensors.TensorError, match="binary=True"):
        tensors.to_json("x", "FP16", np.zeros(1, dtype="float16"))
    with pytest.raises(tensors.TensorError, match="UTF-8"):
        tensors.to_json("x", "BYTES", [b"\xff"])


def test_what_bytes_cannot_carry() -> None:
    with pytest.raises(tensors.TensorError, match="needs a numpy array"):
        tensors.to_bytes("x", "BF16", [1.0])
    with pytest.raises(tensors.TensorError, match="datatype UINT8"):
        tensors.to_bytes("x", "UINT8", [300])


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "message"),
    [
        ("FP32", [2], b"1234", "8 bytes expected, got 4"),
        ("FP99", [1], b"1234", "a known datatype expected"),
        ("BYTES", [1], b"\x01", "end early"),
        ("BYTES", [1], b"\x05\0\0\0ab", "leaves the tensor"),
    ],
)
def test_bytes_that_lie(datatype: str, shape: list[int], raw: bytes, message: str) -> None:
    with pytest.raises(tensors.TensorError, match=message):
        tensors.from_bytes("x", datatype, shape, raw)


def test_halves() -> None:
    assert tensors.from_bytes("x", "FP16", [1], np.array([1.5], dtype="<f2").tobytes()) == [1.5]
    assert tensors.from_bytes("x", "BF16", [2], b"\x80\x3f\x00\xc0") == [1.0, -2.0]
    assert tensors.numpy_dtype("x", "BF16") == "float32"
    assert tensors.numpy_dtype("x", "BYTES") == "object"
    with pytest.raises(tensors.TensorError, match="unknown"):
        tensors.numpy_dtype("x", "FP99")
    output = OutputTensor(name="x", datatype="BF16", shape=[2])
    output.attach(b"\x80\x3f\x00\xc0")
    assert output.numpy().tolist() == [1.0, -2.0]
    assert tensors.nest([], []) is None
    assert tensors.nest([5], []) == 5


def call() -> Call:
    session = Session(
        base_url="http://x",
        api_key="k",
        timeout=Timeout(),
        policy=RetryPolicy(),
        clock=SYSTEM,
        headers={},
        tags={},
    )
    return Call(session, "POST", "/", body=b"{}", options={})


def test_an_input_says_its_own_datatype_and_shape() -> None:
    document, _, _ = infer_wire.encode(
        {
            "inputs": {
                "a": {"data": [1, 2, 3, 4], "datatype": "FP32", "shape": [2, 2]},
                "b": {"data": np.array([1, 2]), "datatype": "FP32"},
            },
            "extra_body": {"future": 1},
        }
    )
    assert document["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
    assert document["inputs"][1]["data"] == [1.0, 2.0]
    assert document["future"] == 1
    with pytest.raises(tensors.TensorError, match="'data'"):
        infer_wire.encode({"inputs": {"x": {"shape": [1]}}})


@pytest.mark.parametrize(
    ("headers", "body", "path"),
    [
        ({}, b"[]", ""),
        ({infer_wire.BINARY_HEADER: "x"}, b"{}", infer_wire.BINARY_HEADER),
        ({infer_wire.BINARY_HEADER: "99"}, b"{}", infer_wire.BINARY_HEADER),
        (
            {},
            b'{"outputs": [{"name": "a", "datatype": "X", "shape": [], "parameters": {"binary_data_size": 1}}]}',
            "outputs[0]",
        ),
    ],
)
def test_answers_that_lie(headers: dict[str, str], body: bytes, path: str) -> None:
    with pytest.raises(ResponseShapeError) as caught:
        infer_wire.decode(Received(200, headers, body), call())
    assert caught.value.path == path

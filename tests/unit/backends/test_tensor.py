"""Tensor: what goes in as wire bytes or as an array comes out the same in both forms."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from naiad_backends.api import Array, Tensor
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import Code, NaiadError

FIXED = [kind for kind in DATATYPES.values() if kind.size]
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, Array]:
    kind = draw(st.sampled_from(FIXED))
    shape = draw(shapes)
    count = int(np.prod(shape, dtype=int))
    raw = draw(st.binary(min_size=count * kind.size, max_size=count * kind.size))
    if kind.name == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    return kind.name, np.frombuffer(bytearray(raw), kind.numpy).reshape(shape)


@given(arrays())
def test_array_to_wire_and_back(case: tuple[str, Array]) -> None:
    datatype, array = case
    wire = Tensor.from_numpy("x", array, datatype).wire()
    assert bytes(wire) == array.tobytes()
    back = Tensor.from_wire("x", datatype, array.shape, wire)
    assert back.numpy().tobytes() == array.tobytes()
    assert back.numpy().shape == array.shape
    assert back.wire() is wire


@given(arrays(), st.integers(0, 3))
def test_wire_may_begin_anywhere(case: tuple[str, Array], offset: int) -> None:
    datatype, array = case
    message = memoryview(bytes(offset) + array.tobytes())[offset:]
    tensor = Tensor.from_wire("x", datatype, array.shape, message)
    assert tensor.numpy().tobytes() == array.tobytes()


@given(arrays(), st.binary(min_size=1, max_size=9))
def test_wrong_size_is_refused(case: tuple[str, Array], extra: bytes) -> None:
    datatype, array = case
    with pytest.raises(NaiadError) as caught:
        Tensor.from_wire("x", datatype, array.shape, array.tobytes() + extra)
    assert caught.value.code is Code.INVALID_ARG


@given(hnp.arrays(object, shapes, elements=st.binary(max_size=6), fill=st.nothing()))
def test_bytes_to_wire_and_back(array: Array) -> None:
    wire = Tensor.from_numpy("x", array).wire()
    assert bytes(wire) == b"".join(struct.pack("<I", len(e)) + e for e in array.ravel())
    back = Tensor.from_wire("x", "BYTES", array.shape, wire).numpy()
    assert back.shape == array.shape
    assert back.ravel().tolist() == array.ravel().tolist()


@given(st.binary(max_size=40), hnp.array_shapes(min_side=0, max_dims=3, max_side=3))
def test_any_bytes_decode_or_are_refused(wire: bytes, shape: tuple[int, ...]) -> None:
    try:
        tensor = Tensor.from_wire("x", "BYTES", shape, wire)
    except NaiadError as error:
        assert error.code is Code.INVALID_ARG
        assert "'x'" in str(error)
    else:
        again = Tensor.from_numpy("x", tensor.numpy())
        assert again.wire() == wire


def test_strided_and_big_endian_arrays_are_encoded_right() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert bytes(Tensor.from_numpy("x", base.T).wire()) == base.T.tobytes()
    swapped = base.astype(">f4")
    assert bytes(Tensor.from_numpy("x", swapped, "FP32").wire()) == base.tobytes()


def test_no_copy_either_way() -> None:
    wire = bytearray(8)
    received = Tensor.from_wire("x", "FP32", (2,), wire)
    assert np.shares_memory(received.numpy(), np.frombuffer(wire, np.uint8))
    array = np.zeros(2_000, np.float32)
    sent = Tensor.from_numpy("x", array)
    assert np.shares_memory(np.frombuffer(sent.wire(), np.uint8), array)


def test_renamed_shares_everything() -> None:
    tensor = Tensor.from_wire("x", "INT32", (2,), bytes(8))
    other = tensor.renamed("y")
    assert (other.name, other.datatype, other.shape) == ("y", "INT32", (2,))
    assert other.encoded
    assert other.wire() is tensor.wire()


def test_unknown_datatype_lists_the_known() -> None:
    with pytest.raises(NaiadError, match="unknown datatype 'FP8'; use one of BOOL"):
        Tensor.from_wire("x", "FP8", (1,), b"\0")


def test_an_array_of_no_datatype_is_a_fault_of_the_backend() -> None:
    with pytest.raises(NaiadError) as caught:
        Tensor.from_numpy("x", np.zeros(2, np.complex64))
    assert caught.value.code is Code.INTERNAL

"""Tensor data as JSON: what fits comes back unchanged, what does not is refused by name."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from naiad.http import jsondata
from naiad_backends.api import Array, Tensor
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import Code, NaiadError

JSON_TYPES = [kind for kind in DATATYPES.values() if kind.name not in ("FP16", "BF16", "BYTES")]
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, Array]:
    kind = draw(st.sampled_from(JSON_TYPES))
    return kind.name, draw(hnp.arrays(kind.numpy, draw(shapes)))


def decode(datatype: str, shape: tuple[int, ...], data: Any) -> Tensor:
    return jsondata.decode("x", datatype, shape, data, "inputs[0]")


def refused(datatype: str, shape: tuple[int, ...], data: Any) -> NaiadError:
    with pytest.raises(NaiadError) as caught:
        decode(datatype, shape, data)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field.startswith("inputs[0]")
    return caught.value


@given(arrays(), st.booleans())
def test_numbers_there_and_back(case: tuple[str, Array], nested: bool) -> None:
    datatype, array = case
    data = jsondata.encode(Tensor.from_numpy("x", array, datatype))
    document = jsondata.loads(jsondata.dumps({"data": data}, [data]))
    given_back = document["data"] if not nested else json.loads(json.dumps(array.tolist()))
    back = decode(datatype, array.shape, given_back if array.shape else document["data"]).numpy()
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@given(st.lists(st.text(), max_size=5))
def test_texts_there_and_back(texts: list[str]) -> None:
    tensor = decode("BYTES", (len(texts),), jsondata.loads(json.dumps(texts).encode()))
    assert tensor.numpy().tolist() == [text.encode() for text in texts]
    assert jsondata.encode(tensor) == texts
    assert Tensor.from_wire("x", "BYTES", tensor.shape, tensor.wire()).numpy().tolist() == [
        text.encode() for text in texts
    ]


def test_nan_and_infinities_are_written_bare() -> None:
    data = np.array([math.nan, math.inf, -math.inf], np.float32)
    assert jsondata.dumps({"data": data}, [data]) == b'{"data":[NaN,Infinity,-Infinity]}'
    assert jsondata.dumps({"p": math.nan}, [math.nan]) == b'{"p":NaN}'
    back = decode("FP32", (3,), jsondata.loads(b"[NaN, Infinity, -Infinity]")).numpy()
    np.testing.assert_array_equal(back, data)


# -- nesting


@pytest.mark.parametrize("beside", [False, True])
def test_a_hundred_levels_are_enough(beside: bool) -> None:
    def nested(levels: int) -> Any:
        data: Any = 7
        for _ in range(levels):
            data = [data]
        return [*data, 8] if beside else data

    shape = (2,) if beside else (1,)
    assert decode("INT8", shape, nested(100)).numpy()[0] == 7
    assert "100 levels" in str(refused("INT8", shape, nested(101)))


def test_only_the_leaves_count() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], 2], [[3, [4]]]], [[], [1, 2, 3], 4]):
        assert decode("INT32", (2, 2), data).numpy().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("mark", [b"1", b"NaN"])
@pytest.mark.parametrize("levels", [101, 990, 1_000, 1_023, 1_025, 100_000])
def test_deep_documents_are_refused_not_fatal(levels: int, mark: bytes) -> None:
    text = b"[" * levels + mark + b"]" * levels
    try:
        document = jsondata.loads(text)
    except NaiadError as error:
        assert error.code is Code.INVALID_ARG
    else:
        refused("FP32", (1,), document)
        refused("FP32", (1,), [{"a": document}])
        assert jsondata.show(document) == "an array"


# -- what does not fit


@pytest.mark.parametrize(
    "kind", [k for k in JSON_TYPES if k.numpy.kind in "iu"], ids=lambda k: k.name
)
def test_integers_have_a_range(kind: Any) -> None:
    limits = np.iinfo(kind.numpy)
    for value in (int(limits.min), int(limits.max)):
        assert decode(kind.name, (1,), [value]).numpy()[0] == value
    for value in (int(limits.min) - 1, int(limits.max) + 1, 10**30, -(10**30)):
        assert kind.name in str(refused(kind.name, (1,), [value]))
        refused(kind.name, (1,), jsondata.loads(f"[{value}]".encode()))


@pytest.mark.parametrize("value", [1e39, -1e39, 10**39, 10**400])
def test_floats_have_a_range(value: float) -> None:
    refused("FP32", (1,), [value])
    if abs(value) < 1e308:
        assert decode("FP64", (1,), [value]).numpy()[0] == value


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("BOOL", 1),
        ("BOOL", "true"),
        ("INT32", True),
        ("INT32", 1.0),
        ("INT32", "1"),
        ("INT32", None),
        ("FP32", True),
        ("FP32", "1"),
        ("FP32", None),
        ("FP32", {}),
        ("BYTES", 1),
        ("BYTES", None),
        ("BYTES", {"a": "b"}),
    ],
)
def test_leaves_have_a_type(datatype: str, value: Any) -> None:
    assert datatype in str(refused(datatype, (1,), [value]))
    refused(datatype, (1,), [[value]])


@pytest.mark.parametrize("data", [[], [1], [1, 2, 3], [[1, 2], [3]]])
def test_elements_are_counted(data: list[Any]) -> None:
    assert "shape [2] needs 2" in str(refused("INT32", (2,), data))


@pytest.mark.parametrize("data", [1, "x", {}, True])
def test_data_is_an_array(data: Any) -> None:
    refused("INT32", (1,), data)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_have_no_json_form(datatype: str) -> None:
    assert "binary" in refused(datatype, (1,), [1.0]).hint
    array = np.zeros(1, np.float16 if datatype == "FP16" else np.uint16)
    with pytest.raises(NaiadError, match="no JSON form"):
        jsondata.encode(Tensor.from_numpy("y", array, datatype))


def test_bytes_that_are_no_text_have_no_json_form() -> None:
    array = np.array([b"\xff"], object)
    with pytest.raises(NaiadError, match="not UTF-8") as caught:
        jsondata.encode(Tensor.from_numpy("y", array, "BYTES"))
    assert "binary" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nan",
        b"[1,]",
        b"[NaN",
        b"[NaN,]",
        b'["NaN" \xff]',
        b'["\xff", NaN]',
        b'"\\ud800"',
        b'["\\ud800", NaN]',
        b'["\\uDFff", Infinity]',
        b'[NaN, "\xed\xa0\x80"]',
        b"[NaN, " + b"9" * 5_000 + b"]",
        b"\xef\xbb\xbf[NaN]",
        "[NaN]".encode("utf-16"),
        b"[NaN" + b"[" * 100_000,
    ],
)
def test_malformed_documents(text: bytes) -> None:
    with pytest.raises(NaiadError) as caught:
        jsondata.loads(text)
    assert caught.value.code is Code.INVALID_ARG
    json.dumps(str(caught.value)).encode()


def test_whole_pairs_of_surrogates_are_text() -> None:
    assert jsondata.loads(b'["\\ud83d\\ude00", 1]') == ["\N{GRINNING FACE}", 1]
    assert jsondata.loads(b'["\\ud83d\\ude00", Infinity]') == ["\N{GRINNING FACE}", math.inf]


def test_values_in_errors_are_short() -> None:
    assert jsondata.show("a" * 1_000) == '"' + "a" * 59 + "..."
    values: list[Any] = [None, True, 1.5, {}, []]
    shown = ["null", "true", "1.5", "an object", "an array"]
    assert [jsondata.show(value) for value in values] == shown

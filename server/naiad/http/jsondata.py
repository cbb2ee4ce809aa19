"""Tensor data as JSON: the `data` member of v2 inputs and outputs, both ways.

Rules (KServe v2, "Tensor Data"): a flat or nested array in row-major order, of which only the
leaves count; BOOL takes true and false, integers take no fraction, BYTES takes strings (their
UTF-8 bytes); FP16 and BF16 have no JSON form. NaN and the infinities are written bare.
"""

import json
import math
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import orjson

from naiad_backends.api import Array, Tensor, unknown_datatype
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import invalid

MAX_DEPTH = 100
"""Levels of nesting that `data` may have, as in Triton."""

_LEAVES: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true or false"),
    "i": (frozenset({int}), "integers"),
    "u": (frozenset({int}), "integers"),
    "f": (frozenset({int, float}), "numbers"),
    "O": (frozenset({str}), "strings"),
}

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(text: bytes | memoryview) -> Any:
    """Parse JSON, with bare NaN and Infinity. Raises INVALID_ARG with the place of the mistake."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        data = bytes(text)
        if b"NaN" not in data and b"Infinity" not in data:
            raise _malformed(error) from None
    try:
        document = json.loads(data.decode())
        if _HALF_PAIR.search(data):
            # Python's parser lets a lone half of a surrogate pair pass, which no answer can hold.
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _malformed(error) from None
    return document


def _malformed(error: Exception) -> Exception:
    return invalid(f"the body is not valid JSON: {error}", hint="send one JSON object in UTF-8")


def decode(name: str, datatype: str, shape: tuple[int, ...], data: Any, field: str) -> Tensor:
    """The tensor that `data` stands for.

    Raises INVALID_ARG, naming `field`, unless its leaves fit datatype and shape.
    """
    kind = DATATYPES.get(datatype)
    if kind is None:
        raise unknown_datatype(datatype, f"{field}.datatype")
    if datatype in ("FP16", "BF16"):
        raise invalid(
            f"{datatype} cannot be sent as JSON", field=f"{field}.data", hint="send it as binary"
        )
    if not isinstance(data, list):
        raise invalid("must be an array", field=f"{field}.data")
    leaves, types = _flatten(data, field)
    if len(leaves) != math.prod(shape):
        raise invalid(
            f"has {len(leaves)} elements, but shape {list(shape)} needs {math.prod(shape)}",
            field=f"{field}.data",
        )
    allowed, wanted = _LEAVES[kind.numpy.kind]
    if not types <= allowed:
        wrong = next(leaf for leaf in leaves if type(leaf) not in allowed)
        raise invalid(f"{datatype} takes {wanted}, not {show(wrong)}", field=f"{field}.data")
    array = _array(leaves, kind.numpy, datatype, field)
    return Tensor.from_numpy(name, array.reshape(shape), datatype)


def _flatten(data: list[Any], field: str) -> tuple[list[Any], set[type]]:
    """The leaves and their types. Each value is touched once, however data is nested."""
    for depth in range(MAX_DEPTH):
        types = set(map(type, data))
        if list not in types:
            return data, types
        if len(types) > 1:
            leaves: list[Any] = []
            _walk(data, MAX_DEPTH - depth, leaves, field)
            return leaves, set(map(type, leaves))
        data = list(chain.from_iterable(data))
    raise _too_deep(field)


def _walk(data: list[Any], levels: int, leaves: list[Any], field: str) -> None:
    if not levels:
        raise _too_deep(field)
    for item in data:
        if type(item) is list:
            _walk(item, levels - 1, leaves, field)
        else:
            leaves.append(item)


def _too_deep(field: str) -> Exception:
    return invalid(f"is nested deeper than {MAX_DEPTH} levels", field=f"{field}.data")


def _array(leaves: list[Any], kind: np.dtype[Any], datatype: str, field: str) -> Array:
    if kind.kind == "O":
        array = np.empty(len(leaves), dtype=object)
        try:
            array[:] = [leaf.encode() for leaf in leaves]
        except UnicodeEncodeError as error:
            raise invalid(
                f"holds text that is not Unicode: {error}", field=f"{field}.data"
            ) from None
        return array
    try:
        with np.errstate(over="raise"):
            return np.array(leaves, kind)
    except (OverflowError, FloatingPointError):
        raise invalid(
            f"holds a number outside the range of {datatype}", field=f"{field}.data"
        ) from None


def show(value: Any) -> str:
    """A value of a document for the text of an error: as JSON, and never long."""
    if isinstance(value, list | dict):
        return "an array" if isinstance(value, list) else "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def encode(tensor: Tensor) -> Any:
    """`data` of an output for `dumps`: flat, in row-major order.

    Raises INVALID_ARG for what JSON cannot hold: FP16, BF16, BYTES that are not UTF-8.
    """
    if tensor.datatype in ("FP16", "BF16"):
        raise invalid(
            f"output '{tensor.name}' is {tensor.datatype}, which has no JSON form",
            hint='ask for binary data: "parameters": {"binary_data": true}',
        )
    array = tensor.numpy()
    if tensor.datatype != "BYTES":
        return np.ascontiguousarray(array).reshape(-1)
    try:
        return [element.decode() for element in array.ravel()]
    except UnicodeDecodeError:
        raise invalid(
            f"output '{tensor.name}' holds bytes that are not UTF-8, which JSON cannot hold",
            hint='ask for binary data: "parameters": {"binary_data": true}',
        ) from None


def dumps(answer: dict[str, Any], numbers: Iterable[Any]) -> bytes:
    """The answer as JSON. numbers: its values, or arrays of them, that may be NaN or infinite."""
    # orjson writes those as null, so such answers take the slower way.
    if all(map(_finite, numbers)):
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(answer, default=np.ndarray.tolist, separators=(",", ":")).encode()


def _finite(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        # all() is written in Python and would take thrice as long for a small array.
        return value.dtype.kind != "f" or b"\0" not in np.isfinite(value).tobytes()
    return not isinstance(value, float) or math.isfinite(value)

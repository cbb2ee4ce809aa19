"""What the operators and functions of a condition do with their operands.

Operands are numbers, strings, tuples of those, tensors, and arrays that came of tensors. Nothing
here makes more elements than its operands have, so that an expression costs a pass over its tensors
for each of its operators. All failures are INVALID_ARG. Knows no syntax.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from naiad_backends.api import Array, Tensor
from naiad_backends.errors import invalid

Scalar = bool | int | float | str
Value = Scalar | tuple[Any, ...] | Tensor | Array


def truth(value: Value) -> bool:
    """Whether a value counts as true; of a tensor or an array, its only element."""
    value = _open(value)
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise invalid(
                f"{value.size} elements are neither true nor false", hint="use any() or all()"
            )
        return bool(value.item())
    return bool(value)


def compare(compared: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    """compared: one of `operator`'s.  Arrays are compared element by element."""
    left, right = _open(left), _open(right)
    _same_shape(left, right)
    if isinstance(right, np.ndarray):
        left = _element_like(right, left)
    if isinstance(left, np.ndarray):
        right = _element_like(left, right)
    try:
        with np.errstate(all="ignore"):
            result = compared(left, right)
    except (TypeError, OverflowError) as error:
        raise invalid(f"{_kind(left)} and {_kind(right)} cannot be compared") from error
    return result if isinstance(result, np.ndarray) else bool(result)


def calculate(calculated: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    """calculated: one of `operator`'s, for numbers only: with strings and tuples they would make
    longer ones."""
    left, right = _wide(left), _wide(right)
    _same_shape(left, right)
    try:
        with np.errstate(all="ignore"):
            return _shrunk(calculated(left, right))
    except ZeroDivisionError as error:
        raise invalid("division by zero") from error
    except (TypeError, OverflowError) as error:
        raise invalid(f"{_kind(left)} and {_kind(right)} do not go together") from error


def negative(value: Value) -> Value:
    """The number with the other sign."""
    return calculate(operator.sub, 0, value)


def contains(container: Value, value: Value) -> bool:
    """Whether one of the elements equals the value; in a string, whether it is a part of it."""
    container, value = _open(container), _open(value)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = _shrunk(value.item())
    if isinstance(container, np.ndarray) and not isinstance(value, np.ndarray | tuple):
        return _any(compare(operator.eq, container, value))
    if isinstance(container, str) and isinstance(value, str):
        return value in container
    if isinstance(container, tuple) and not isinstance(value, np.ndarray):
        return value in container
    raise invalid(f"{_kind(value)} cannot be looked for in {_kind(container)}")


def element(value: Value, index: Value) -> Value:
    """The element at a place, counted from 0, or from -1 at the end; a tuple of places for several
    dimensions. With fewer places than dimensions, the part of the tensor that lies there."""
    places = index if isinstance(index, tuple) else (index,)
    if not all(type(place) is int for place in places) or isinstance(value, bool | int | float):
        raise invalid(f"{_kind(value)} has no element at {_kind(index)}", hint="use whole numbers")
    value = _open(value)
    try:
        if isinstance(value, np.ndarray):
            return _shrunk(value[places])
        (place,) = places
        return value[place]  # type: ignore[index]
    except (IndexError, ValueError) as error:
        size = list(value.shape) if isinstance(value, np.ndarray) else len(value)  # type: ignore[arg-type]
        raise invalid(f"there is no element {list(places)} where the size is {size}") from error


# -- functions


@dataclass(frozen=True, slots=True)
class Function:
    """A function that an expression may call, with at least and at most so many arguments."""

    call: Callable[..., Value]
    least: int = 1
    most: int = 1


def _shape(value: Value) -> tuple[int, ...]:
    if isinstance(value, Tensor | np.ndarray):
        return tuple(int(size) for size in value.shape)
    raise invalid(f"{_kind(value)} has no shape")


def _size(value: Value) -> int:
    return math.prod(_shape(value))


def _len(value: Value) -> int:
    size = len(value) if isinstance(value, str | tuple) else next(iter(_shape(value)), None)
    if size is None:
        raise invalid("a tensor without dimensions has no length")
    return size


def _any(value: Value) -> bool:
    return bool(np.any(_number(value)))


def _all(value: Value) -> Value:
    return bool(np.all(_number(value)))


def _sum(value: Value) -> Value:
    return _reduced(np.sum, value, "sum")


def _mean(value: Value) -> Value:
    return _reduced(np.mean, value, "mean")


def _max(*values: Value) -> Value:
    return _extreme(np.max, "max", *values)


def _min(*values: Value) -> Value:
    return _extreme(np.min, "min", *values)


def _extreme(reduced: Callable[[Array], Any], name: str, *values: Value) -> Value:
    if len(values) == 1:
        return _reduced(reduced, values[0], name)
    return _reduced(reduced, tuple(_reduced(reduced, value, name) for value in values), name)


def _reduced(reduced: Callable[[Array], Any], value: Value, name: str) -> Value:
    array = np.asarray(tuple(map(_number, value)) if isinstance(value, tuple) else _number(value))
    if array.size == 0 and name != "sum":
        raise invalid(f"{name} of no elements", hint="ask for size() first")
    try:
        with np.errstate(all="ignore"):
            return _shrunk(reduced(array))
    except OverflowError as error:
        raise invalid(f"{name} of numbers that are too large") from error


def _abs(value: Value) -> Value:
    with np.errstate(all="ignore"):
        return _shrunk(abs(_wide(value)))


FUNCTIONS: Mapping[str, Function] = {
    "shape": Function(_shape),
    "size": Function(_size),
    "len": Function(_len),
    "any": Function(_any),
    "all": Function(_all),
    "sum": Function(_sum),
    "mean": Function(_mean),
    "abs": Function(_abs),
    "max": Function(_max, 1, 8),
    "min": Function(_min, 1, 8),
}


# -- operands


def _open(value: Value) -> Scalar | tuple[Any, ...] | Array:
    """A tensor as an array; BF16 as numbers."""
    if not isinstance(value, Tensor):
        return value
    array = value.numpy()
    if value.datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _number(value: Value) -> Any:
    """A value that is numbers."""
    opened = _open(value)
    text = opened.dtype == object if isinstance(opened, np.ndarray) else isinstance(opened, str)
    if text or isinstance(opened, tuple):
        raise invalid(f"{_kind(value)} is no number")
    return opened


def _wide(value: Value) -> Any:
    """Numbers to calculate with: whole ones in a type that does not wrap around so soon."""
    number = _number(value)
    if isinstance(number, np.ndarray):
        small = number.dtype.kind in "biu" and number.dtype != np.uint64
        return number.astype(np.int64, copy=False) if small else number
    return int(number) if isinstance(number, bool) else number


def _shrunk(value: Any) -> Value:
    """A single element as Python has it; of BYTES as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        return value.item()  # type: ignore[no-any-return]
    return value  # type: ignore[no-any-return]


def _element_like(array: Array, value: Any) -> Any:
    """What the elements of an array are compared with; a string as BYTES has it."""
    text = value.dtype == object if isinstance(value, np.ndarray) else isinstance(value, str)
    if isinstance(value, tuple) or text != (array.dtype == object):
        raise invalid(f"{_kind(array)} and {_kind(value)} cannot be compared")
    return value.encode() if isinstance(value, str) else value


def _same_shape(left: Any, right: Any) -> None:
    """Where shapes differ, NumPy would make elements."""
    if not isinstance(left, np.ndarray) or not isinstance(right, np.ndarray):
        return
    if left.shape != right.shape and left.size != 1 and right.size != 1:
        raise invalid(f"shapes {list(left.shape)} and {list(right.shape)} differ")


def _kind(value: Value) -> str:
    if isinstance(value, Tensor):
        return f"tensor '{value.name}'"
    if isinstance(value, np.ndarray):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, tuple) else f"{value}"

"""The best classes of an output as text, in place of its numbers: value, index and label.

Pure: a tensor in, a BYTES tensor out. Which outputs, how many classes and where labels come from is
decided elsewhere. Source: Triton's classification extension.
"""

import math
from collections.abc import Sequence

import numpy as np

from naiad_backends.api import Array, Tensor
from naiad_backends.errors import invalid

MAX_ELEMENTS = 1_000_000
"""The most elements that an output may have for each batch item to be classified; Triton's."""

_INTEGERS = frozenset(
    ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
)
_FLOATS = frozenset(("FP32", "FP64"))


def classify(tensor: Tensor, count: int, labels: Sequence[bytes], batched: bool) -> Tensor:
    """The `count` (at least 1) largest elements of each batch item, as `<value>:<index>[:<label>]`.

    labels: by index; an index without one, or with an empty one, is shown without.
    batched: the first dimension is the batch; else the whole tensor is one item.
    The result has the shape [n] or [batch, n]; n is `count`, or all elements where they are fewer.
    Largest first, NaN last; of equal values the one with the lower index comes first.
    Raises INVALID_ARG for a datatype without an order and for too many elements.
    """
    lead = tensor.shape[:1] if batched else ()
    elements = math.prod(tensor.shape[len(lead) :])
    is_float = tensor.datatype in _FLOATS
    if not is_float and tensor.datatype not in _INTEGERS:
        raise invalid(
            f"output '{tensor.name}' is {tensor.datatype}, which has no classes",
            hint="ask for the output itself; integers, FP32 and FP64 can be classified",
        )
    if elements > MAX_ELEMENTS:
        raise invalid(
            f"output '{tensor.name}' has {elements} elements, the most that can be classified"
            f" are {MAX_ELEMENTS}",
            hint="ask for the output itself",
        )
    items = tensor.numpy().reshape(math.prod(lead), elements)
    best = _descending(items, is_float)[:, : min(count, elements)]
    values = np.take_along_axis(items, best, axis=1).ravel().tolist()
    form = "%f:%d" if is_float else "%d:%d"
    texts = np.empty(best.size, object)
    for place, (value, index) in enumerate(zip(values, best.ravel().tolist(), strict=True)):
        text = (form % (value, index)).encode()
        label = labels[index] if index < len(labels) else b""
        texts[place] = b"%b:%b" % (text, label) if label else text
    return Tensor.from_numpy(tensor.name, texts.reshape((*lead, best.shape[1])), "BYTES")


def _descending(items: Array, is_float: bool) -> Array:
    """Indices of each row's elements. Unlike `-x`, `~x` turns the order of all integers around,
    the smallest and the unsigned ones included."""
    return np.argsort(-items if is_float else ~items, axis=1, kind="stable")

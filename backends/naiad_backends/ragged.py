"""Ragged batches: requests of different shapes behind one another, and what tells them apart.

Pure: requests and arrays in, arrays out. Source: Triton's `allow_ragged_batch`, `batch_input` and
`batch_output`.
"""

import math
from collections.abc import Sequence

import numpy as np

from naiad_backends.api import Array, BatchInput, BatchInputKind, Request, TensorSpec
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import internal


def flatten(requests: Sequence[Request], name: str) -> Array:
    """All elements of input `name`, request by request, in one dimension."""
    parts = [request.inputs[name].numpy().reshape(-1) for request in requests]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def batch_input(made: BatchInput, requests: Sequence[Request], batched: bool) -> Array:
    """The tensor that tells of the source inputs of a batch.

    batched: the first dimension of the source is the request's batch. It counts as elements, and it
    is no part of an item's shape.
    """
    shapes = [request.inputs[made.source].shape for request in requests]
    counts = [math.prod(shape) for shape in shapes]
    dtype = DATATYPES[made.datatype].numpy
    match made.kind:
        case BatchInputKind.ELEMENT_COUNT:
            return np.array(counts, dtype)
        case BatchInputKind.ACCUMULATED_ELEMENT_COUNT:
            return np.cumsum(counts).astype(dtype)
        case BatchInputKind.ACCUMULATED_ELEMENT_COUNT_WITH_ZERO:
            return np.cumsum([0, *counts]).astype(dtype)
        case BatchInputKind.MAX_ELEMENT_COUNT_AS_SHAPE:
            # Only its length means something.
            return np.zeros(max(counts), dtype)
    items = [shape[1:] for shape in shapes for _ in range(shape[0])] if batched else shapes
    if made.kind is BatchInputKind.ITEM_SHAPE:
        return np.array(items, dtype)
    return np.array([size for item in items for size in item], dtype)


def split(
    output: TensorSpec, array: Array, requests: Sequence[Request], source: str, batched: bool
) -> list[Array]:
    """An output that came back for the whole batch, cut into each request's part, in its shape.

    A part has the output's dims with each -1 taken from the same place of the request's own source
    input. Raises INTERNAL if the elements are not as many as the parts need.
    """
    shapes = [_part(output, request, source, batched) for request in requests]
    sizes = [math.prod(shape) for shape in shapes]
    flat = array.reshape(-1)
    if flat.size != sum(sizes):
        raise internal(
            f"output '{output.name}' has {flat.size} elements, but the requests of the batch need"
            f" {sum(sizes)}",
            hint=f"its -1 dimensions are taken from input '{source}'",
        )
    ends = np.cumsum(sizes).tolist()
    return [
        flat[end - size : end].reshape(shape)
        for end, size, shape in zip(ends, sizes, shapes, strict=True)
    ]


def _part(output: TensorSpec, request: Request, source: str, batched: bool) -> tuple[int, ...]:
    shape = request.inputs[source].shape
    dims = (-1, *output.model_dims) if batched else output.model_dims
    if len(dims) != len(shape):
        raise internal(
            f"output '{output.name}' has {len(dims)} dimensions, but its source input '{source}'"
            f" {len(shape)}"
        )
    return tuple(own if dim == -1 else dim for dim, own in zip(dims, shape, strict=True))

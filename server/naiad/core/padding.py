"""Inputs of variable size padded to a few sizes, so that requests of different lengths can share a
batch; outputs cut back to the length that the client sent.

Naiad's own. Knows nothing of queues; it changes a request before it is queued, and its response.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from naiad_backends.api import Array, ModelSpec, Request, Response, Tensor, TensorSpec


class Padding:
    """The sizes of one model version."""

    def __init__(self, spec: ModelSpec, buckets: Sequence[int]) -> None:
        """buckets: sizes, ascending. Each -1 of an input is padded to the next of them; a size
        beyond the last one stays."""
        lead = 1 if spec.max_batch_size else 0
        self._buckets = buckets
        self._inputs = _open_axes(spec.inputs, lead)
        self._outputs = _open_axes(spec.outputs, lead)

    def pad(self, request: Request) -> dict[int, int]:
        """Pad the request's inputs, and return what became of which size: padded -> original.

        New elements are zeros, or empty for BYTES. Where two different sizes become the same one,
        nobody can tell them apart in an output, so it is left out.
        """
        inputs = dict(request.inputs)
        sizes: dict[int, int] = {}
        for name, axes in self._inputs.items():
            tensor = inputs.get(name)
            if tensor is None:
                continue
            shape = list(tensor.shape)
            for axis in axes:
                size = shape[axis]
                shape[axis] = self._bucket(size)
                sizes[shape[axis]] = size if sizes.get(shape[axis], size) == size else 0
            if tuple(shape) != tensor.shape:
                array = _padded(tensor.numpy(), shape)
                inputs[name] = Tensor.from_numpy(name, array, tensor.datatype)
        request.inputs = inputs
        return {padded: size for padded, size in sizes.items() if size not in (0, padded)}

    def cut(self, response: Response, sizes: dict[int, int]) -> None:
        """Cut the -1 dimensions of outputs that have a padded size."""
        response.outputs = [self._cut(tensor, sizes) for tensor in response.outputs]

    def _cut(self, tensor: Tensor, sizes: dict[int, int]) -> Tensor:
        shape = list(tensor.shape)
        for axis in self._outputs.get(tensor.name, ()):
            shape[axis] = sizes.get(shape[axis], shape[axis])
        if tuple(shape) == tensor.shape:
            return tensor
        part = tensor.numpy()[tuple(slice(size) for size in shape)]
        return Tensor.from_numpy(tensor.name, part, tensor.datatype)

    def _bucket(self, size: int) -> int:
        at = bisect_left(self._buckets, size)
        return self._buckets[at] if at < len(self._buckets) else size


def _open_axes(tensors: Sequence[TensorSpec], lead: int) -> dict[str, list[int]]:
    return {
        tensor.name: axes
        for tensor in tensors
        if (axes := [lead + axis for axis, dim in enumerate(tensor.dims) if dim == -1])
    }


def _padded(array: Array, shape: Sequence[int]) -> Array:
    empty = b"" if array.dtype.kind == "O" else 0
    wide = np.full(shape, empty, array.dtype)
    wide[tuple(slice(size) for size in array.shape)] = array
    return wide

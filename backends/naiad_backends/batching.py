"""Puts the requests of a batch together and takes their answers apart again.

Framework-free: NumPy arrays in, NumPy arrays out. Knows nothing of queues or of when to batch.
"""

from collections.abc import Collection, Sequence

import numpy as np

from naiad_backends.api import Array, Request
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import internal


def stackable(requests: Sequence[Request], ragged: Collection[str] = ()) -> bool:
    """Whether all requests have the same inputs with the same shapes behind the first dimension.

    ragged: inputs whose shapes do not matter.
    """
    first = requests[0].inputs
    for request in requests[1:]:
        inputs = request.inputs
        if len(inputs) != len(first):
            return False
        for name, tensor in first.items():
            other = inputs.get(name)
            if other is None or (other.shape[1:] != tensor.shape[1:] and name not in ragged):
                return False
    return True


def batch_sizes(requests: Sequence[Request]) -> list[int]:
    """Each request's number of batch elements: the first dimension of its first input."""
    return [next(iter(request.inputs.values())).shape[0] for request in requests]


def gather(requests: Sequence[Request], name: str) -> Array:
    """Input `name` of all requests, concatenated along the first dimension; one copy.

    A single request's array comes back as it is, without a copy. Requests must be `stackable`.
    """
    tensors = [request.inputs[name] for request in requests]
    first = tensors[0]
    if len(tensors) == 1:
        return first.numpy()
    kind = DATATYPES[first.datatype]
    if kind.size and all([tensor.encoded for tensor in tensors]):
        # Joining bytes as they came is cheaper than making an array of each.
        joined = b"".join([tensor.wire() for tensor in tensors])
        rows = sum(tensor.shape[0] for tensor in tensors)
        return np.frombuffer(joined, kind.numpy).reshape(rows, *first.shape[1:])
    return np.concatenate([tensor.numpy() for tensor in tensors])


def scatter(name: str, array: Array, sizes: Sequence[int]) -> list[Array]:
    """Cut output `name` into views of `sizes[i]` rows each.

    Raises INTERNAL if the array does not have exactly `sum(sizes)` rows.
    """
    total = sum(sizes)
    if array.ndim == 0 or array.shape[0] != total:
        raise internal(
            f"output '{name}' has shape {list(array.shape)}, but the batch holds {total} elements",
            hint="the model does not keep the batch dimension: set max_batch_size to 0",
        )
    parts: list[Array] = []
    start = 0
    for size in sizes:
        parts.append(array[start : start + size])
        start += size
    return parts


def wanted_outputs(
    requests: Sequence[Request], names: Sequence[str], hidden: Sequence[str] = ()
) -> Sequence[str]:
    """Those of the model's output `names` that at least one request wants, in that order, and then
    those of the `hidden` ones, which a request has to name."""
    wanted: set[str] = set()
    for request in requests:
        if not (request.outputs or hidden):
            return names
        wanted.update(request.outputs or names)
    return [name for name in (*names, *hidden) if name in wanted]

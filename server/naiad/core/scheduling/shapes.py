"""Which requests may share a batch: those whose tensors can be put behind one another.

Source: Triton's dynamic batcher. Only inputs of variable size are compared, and which inputs there
are where a model does not need all of them.
"""

from collections.abc import Callable, Hashable

from naiad_backends.api import ModelSpec, Request


def batch_key(spec: ModelSpec) -> Callable[[Request], Hashable]:
    """A function whose results are equal for requests that may share a batch of the model."""
    names = [tensor.name for tensor in spec.inputs if -1 in tensor.dims and not tensor.ragged]
    if any(tensor.optional for tensor in spec.inputs):
        return lambda request: _shapes_of_all(request, names)
    if not names:
        return lambda request: None
    if len(names) == 1:
        name = names[0]
        return lambda request: request.inputs[name].shape[1:]
    return lambda request: tuple([request.inputs[name].shape[1:] for name in names])


def _shapes_of_all(request: Request, names: list[str]) -> Hashable:
    inputs = request.inputs
    return frozenset(inputs), tuple([inputs[n].shape[1:] for n in names if n in inputs])

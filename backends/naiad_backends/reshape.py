"""The configuration's `reshape`: clients use `dims`, the model sees `reshape.shape`.

The number of -1 is the same on both sides, and they stand for the same sizes in order.
"""

from naiad_backends.api import Array, TensorSpec
from naiad_backends.errors import internal


def to_model(array: Array, spec: TensorSpec, batched: bool) -> Array:
    """An input as the model wants it; a view. `array` must fit `spec.dims`."""
    return array.reshape(translate(array.shape, spec.dims, spec.model_dims, batched))


def to_client(array: Array, spec: TensorSpec, batched: bool) -> Array:
    """An output as the client wants it; a view where the array is contiguous.

    Raises INTERNAL if the array does not have the shape that the configuration promises.
    """
    if not fits(array.shape, spec.model_dims, batched):
        batch = ["batch"] if batched else []
        raise internal(
            f"output '{spec.name}' came from the model with shape {list(array.shape)}, but the"
            f" configuration promises {[*batch, *spec.model_dims]}",
            hint="correct dims and reshape of this output in the configuration",
        )
    return array.reshape(translate(array.shape, spec.model_dims, spec.dims, batched))


def fits(shape: tuple[int, ...], dims: tuple[int, ...], batched: bool) -> bool:
    """Whether a tensor of this shape is one of these dimensions, -1 being any."""
    rest = shape[1:] if batched else shape
    return len(shape) == len(dims) + batched and all(
        dim in (-1, size) for size, dim in zip(rest, dims, strict=True)
    )


def translate(
    shape: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...], batched: bool
) -> tuple[int, ...]:
    """A shape that fits `source` in the form of `target`."""
    batch, rest = (shape[:1], shape[1:]) if batched else ((), shape)
    free = iter([size for size, dim in zip(rest, source, strict=True) if dim == -1])
    return batch + tuple(next(free) if dim == -1 else dim for dim in target)

"""Tensors between models of which one has a batch dimension and the other has none.

Shapes only. `dims` are a tensor's dimensions without the batch, as a configuration has them, with
-1 for any size; a shape is that of a tensor at hand.
"""

from collections.abc import Sequence

from naiad_backends.errors import invalid


def fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    """Whether both are the same where neither is -1."""
    return len(shape) == len(dims) and all(
        size == wanted or -1 in (size, wanted) for size, wanted in zip(shape, dims, strict=True)
    )


def agree(
    dims: Sequence[int], batching: bool, other_dims: Sequence[int], other_batching: bool
) -> bool:
    """Whether a tensor that one side describes may be one that the other side describes."""
    if fits(dims, other_dims):
        return True
    if batching == other_batching:
        return False
    whole, other = (dims, other_dims) if other_batching else (other_dims, dims)
    return fits(whole, (-1, *other))


def passed_on(
    shape: tuple[int, ...], batching: bool, dims: Sequence[int], wants_batch: bool
) -> tuple[int, ...]:
    """The shape in which a tensor goes to a side that describes it as `dims`.

    batching, wants_batch: whether the tensor has a batch dimension, and whether the side wants one.
    The elements stay the same. Raises INVALID_ARG if the shape is not one that the side can take.
    """
    if batching == wants_batch:
        return shape
    if fits(shape, dims):
        return (1, *shape) if wants_batch else shape
    if wants_batch and fits(shape[1:], dims):
        return shape
    if not wants_batch and shape[:1] == (1,) and fits(shape[1:], dims):
        return shape[1:]
    wanted = [-1, *dims] if wants_batch else list(dims)
    hint = "" if wants_batch else "what has no batch dimension takes a batch of 1 only"
    raise invalid(f"has shape {list(shape)}, but {wanted} is wanted", hint=hint)

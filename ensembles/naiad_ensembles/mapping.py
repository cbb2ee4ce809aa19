"""A step over items: how its tensors are split, and how what its runs give is put together again.

Items lie along the first dimension that is no batch; where there is a batch dimension, each of its
elements has equally many. Knows tensors and no graph; who runs the items is up to the caller.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from naiad_backends.api import Array, Tensor, TensorSpec
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import NaiadError, internal, invalid
from naiad_ensembles.batching import passed_on

MOST_ITEMS = 65_536

_Part = Callable[[int, int], Array]
"""What the run of the items from a first up to a last one gets of a tensor."""


@dataclass(frozen=True, slots=True)
class MapInput:
    """A tensor that goes into a step over items.

    name: what the model calls it.  dims: as the model describes it.
    split: it is split into items; else each item gets it.
    batching: it has a batch dimension.
    """

    name: str
    dims: tuple[int, ...]
    split: bool
    batching: bool


@dataclass(frozen=True, slots=True)
class Items:
    """A step's tensors, split.

    lead: the dimensions in front of an item's: the number of items, behind the batch if there is
        one.
    runs: the inputs of each run, by the model's names.  sizes: how many items each has.
    """

    lead: tuple[int, ...]
    runs: tuple[dict[str, Tensor], ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mapper:
    """How one step is done over items.

    outputs: what the step maps of the model's outputs.
    batching: what is split has a batch dimension.  wants_batch: the model has one.
    most: how many items go into a run, which is 1 unless they go as batches.
    pad: what shapes that differ are filled up with; None refuses them.
    """

    inputs: tuple[MapInput, ...]
    outputs: tuple[TensorSpec, ...]
    batching: bool
    wants_batch: bool
    most: int
    pad: int | float | None
    max_items: int

    def split(self, given: Mapping[str, Tensor]) -> Items:
        """The runs for the tensors that a step was given, by the model's names; null ones are left
        out. Views of the tensors, but for those that several items of a batch share.

        Raises INVALID_ARG if they have no number of items in common, or too many.
        """
        lead = self._lead(given)
        count = math.prod(lead)
        parts = {
            spec.name: (self._parts(spec, given[spec.name], lead), given[spec.name].datatype)
            for spec in self.inputs
            if spec.name in given
        }
        runs, sizes = [], []
        for start in range(0, count, self.most):
            stop = min(start + self.most, count)
            runs.append(
                {
                    name: Tensor.from_numpy(name, part(start, stop), datatype)
                    for name, (part, datatype) in parts.items()
                }
            )
            sizes.append(stop - start)
        return Items(lead, tuple(runs), tuple(sizes))

    def gather(self, items: Items, given: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The step's outputs from those of its runs, by the model's names.

        given: for each run of `items`, in their order.  Raises INVALID_ARG if shapes differ that
        are not to be filled up, or if only some runs gave an output; INTERNAL if a model gave
        another number of items than it got.
        """
        gathered = {}
        for spec in self.outputs:
            tensors = [outputs[spec.name] for outputs in given if spec.name in outputs]
            if len(tensors) != len(items.runs):
                if tensors:
                    raise invalid(
                        f"output '{spec.name}' came for {len(tensors)} of {len(items.runs)} runs"
                    )
                continue
            array = self._joined(spec, items, tensors) if tensors else _empty(spec)
            shaped = array.reshape(*items.lead, *array.shape[1:])
            datatype = tensors[0].datatype if tensors else spec.datatype
            gathered[spec.name] = Tensor.from_numpy(spec.name, shaped, datatype)
        return gathered

    # -- splitting

    def _lead(self, given: Mapping[str, Tensor]) -> tuple[int, ...]:
        depth = 2 if self.batching else 1
        leads = {
            spec.name: given[spec.name].shape[:depth]
            for spec in self.inputs
            if spec.split and spec.name in given
        }
        if not leads:
            raise invalid("none of the tensors is there that should be split")
        if len(set(leads.values())) > 1:
            counts = ", ".join(f"'{name}' {list(lead)}" for name, lead in leads.items())
            raise invalid(f"the numbers of items differ: {counts}")
        (lead,) = set(leads.values())
        if len(lead) < depth:
            raise invalid(f"'{next(iter(leads))}' has no dimension that could be split")
        if math.prod(lead) > self.max_items:
            raise invalid(
                f"there are {math.prod(lead)} items, but at most {self.max_items} are allowed",
                hint="raise max_items of the step's map",
            )
        return lead

    def _parts(self, spec: MapInput, tensor: Tensor, lead: tuple[int, ...]) -> _Part:
        """What a run of some items gets of a tensor."""
        array = tensor.numpy()
        if spec.split:
            items = array.reshape(math.prod(lead), *(array.shape[len(lead) :] or (1,)))
            if self.wants_batch:
                return lambda start, stop: items[start:stop]
            return lambda start, stop: items[start]
        if spec.batching and self.batching:
            return self._elements(spec, array, lead)
        whole = array.reshape(self._passed(spec, array))
        return lambda start, stop: self._repeated(spec, whole, stop - start)

    def _elements(self, spec: MapInput, array: Array, lead: tuple[int, ...]) -> _Part:
        """The elements of a batch in which the items lie."""
        if array.shape[:1] != lead[:1]:
            raise invalid(
                f"input '{spec.name}' is a batch of {array.shape[0]}, but there are items of"
                f" {lead[0]}"
            )

        def part(start: int, stop: int) -> Array:
            if stop - start > 1:
                return array[[place // lead[1] for place in range(start, stop)]]
            element = array[start // lead[1] :][:1]
            return element.reshape(self._passed(spec, element))

        return part

    def _passed(self, spec: MapInput, array: Array) -> tuple[int, ...]:
        try:
            return passed_on(array.shape, spec.batching, spec.dims, self.wants_batch)
        except NaiadError as error:
            raise invalid(f"input '{spec.name}' {error.message}", hint=error.hint) from error

    def _repeated(self, spec: MapInput, array: Array, count: int) -> Array:
        if count == 1:
            return array
        if array.shape[0] != 1:
            raise invalid(
                f"input '{spec.name}' is a batch of {array.shape[0]}, which cannot go to each item"
            )
        return np.broadcast_to(array, (count, *array.shape[1:]))

    # -- gathering

    def _joined(self, spec: TensorSpec, items: Items, tensors: Sequence[Tensor]) -> Array:
        """The outputs of all items in one array, whose first dimension is that of the items."""
        arrays = []
        for tensor, size in zip(tensors, items.sizes, strict=True):
            array = tensor.numpy() if self.wants_batch else tensor.numpy()[np.newaxis]
            if array.shape[:1] != (size,):
                raise internal(
                    f"output '{spec.name}' has shape {list(tensor.shape)} for {size} items"
                )
            arrays.append(array)
        if len({array.shape[1:] for array in arrays}) == 1:
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return self._padded(spec, arrays, tensors[0].datatype)

    def _padded(self, spec: TensorSpec, arrays: Sequence[Array], datatype: str) -> Array:
        shapes = [array.shape[1:] for array in arrays]
        other = next(shape for shape in shapes if shape != shapes[0])
        if self.pad is None:
            raise invalid(
                f"output '{spec.name}' has shape {list(shapes[0])} for one item and {list(other)}"
                " for another",
                hint="set pad in the step's map to fill them up",
            )
        if len({len(shape) for shape in shapes}) > 1:
            raise invalid(
                f"output '{spec.name}' has more dimensions for some items than for others"
            )
        largest = tuple(map(max, zip(*shapes, strict=True)))
        padded = np.full((sum(map(len, arrays)), *largest), padding(self.pad, datatype))
        start = 0
        for array in arrays:
            inside = tuple(slice(0, size) for size in array.shape[1:])
            padded[(slice(start, start + len(array)), *inside)] = array
            start += len(array)
        return padded


def padding(pad: int | float, datatype: str) -> Array:
    """The element that fills up a tensor; empty for BYTES. Raises INVALID_ARG if the datatype does
    not have it."""
    kind = DATATYPES[datatype].numpy
    if datatype == "BYTES":
        filling = np.empty((), kind)
        filling[()] = b""
        return filling
    if datatype == "BF16":
        return np.asarray(np.asarray(pad, np.float32).view(np.uint32) >> 16, kind)
    try:
        with np.errstate(over="ignore"):
            filling = np.asarray(pad, kind)
    except (OverflowError, ValueError) as error:
        raise invalid(f"{pad} is no {datatype}") from error
    if kind.kind in "biu" and filling.item() != pad:
        raise invalid(f"{pad} is no {datatype}")
    return filling


def _empty(spec: TensorSpec) -> Array:
    """The outputs of no items."""
    return np.empty((0, *(max(size, 0) for size in spec.dims)), DATATYPES[spec.datatype].numpy)

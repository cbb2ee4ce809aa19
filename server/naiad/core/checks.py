"""Holds a request against a model's inputs and outputs, once, before anything queues.

Tensors arrive with datatype, shape and bytes in agreement (`Tensor.from_wire` saw to that) and
with no input named twice (the front ends see to that).
"""

from naiad_backends.api import ModelSpec, Request, Tensor, TensorSpec
from naiad_backends.errors import NaiadError, invalid


class RequestCheck:
    """The checks of one model version, prepared at load time."""

    def __init__(self, spec: ModelSpec) -> None:
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._required = {tensor.name for tensor in spec.inputs if not tensor.optional}
        self._outputs = {tensor.name for tensor in spec.outputs}
        self._max_batch_size = spec.max_batch_size

    def __call__(self, request: Request) -> int:
        """The request's batch size: its first dimension, or 1 for a model that does not batch.

        Raises INVALID_ARG, naming the field, for anything that does not fit.
        """
        batch_size = 0
        for name, tensor in request.inputs.items():
            spec = self._inputs.get(name)
            if spec is None:
                raise self._unknown_input(request, name)
            if tensor.datatype != spec.datatype:
                raise invalid(
                    f"input '{name}' is {tensor.datatype}, but the model takes {spec.datatype}",
                    field=_field(request, name, "datatype"),
                )
            batch_size = self._fit_shape(request, tensor, spec, batch_size)
        if len(request.inputs) != len(self._inputs):
            self._missing(request)
        if request.outputs:
            self._fit_outputs(request)
        return batch_size or 1

    def _fit_shape(
        self, request: Request, tensor: Tensor, spec: TensorSpec, batch_size: int
    ) -> int:
        shape = tensor.shape
        if self._max_batch_size:
            if len(shape) != len(spec.dims) + 1:
                raise self._wrong_shape(request, tensor, spec)
            size = shape[0]
            if not 1 <= size <= self._max_batch_size:
                raise invalid(
                    f"input '{tensor.name}' has batch size {size}, but the model takes 1 to"
                    f" {self._max_batch_size}",
                    field=_field(request, tensor.name, "shape[0]"),
                    hint="the first dimension is the batch",
                )
            if batch_size and size != batch_size:
                raise invalid(
                    f"input '{tensor.name}' has batch size {size}, the inputs before it"
                    f" {batch_size}",
                    field=_field(request, tensor.name, "shape[0]"),
                )
            batch_size = size
            shape = shape[1:]
        if len(shape) != len(spec.dims):
            raise self._wrong_shape(request, tensor, spec)
        for given, wanted in zip(shape, spec.dims, strict=True):
            if given != wanted and wanted != -1:
                raise self._wrong_shape(request, tensor, spec)
        return batch_size

    def _wrong_shape(self, request: Request, tensor: Tensor, spec: TensorSpec) -> NaiadError:
        wanted = [*([-1] if self._max_batch_size else []), *spec.dims]
        return invalid(
            f"input '{tensor.name}' has shape {list(tensor.shape)}, but the model takes {wanted}",
            field=_field(request, tensor.name, "shape"),
            hint="-1 stands for any size; the first dimension is the batch"
            if self._max_batch_size
            else "-1 stands for any size",
        )

    def _unknown_input(self, request: Request, name: str) -> NaiadError:
        return invalid(
            f"the model has no input '{name}'",
            field=_field(request, name, "name"),
            hint=f"its inputs are {', '.join(sorted(self._inputs)) or 'none'}",
        )

    def _missing(self, request: Request) -> None:
        missing = sorted(self._required - request.inputs.keys())
        if missing:
            raise invalid(
                f"missing: {', '.join(map(repr, missing))}",
                field="inputs",
                hint=f"the model needs {', '.join(sorted(self._required))}",
            )

    def _fit_outputs(self, request: Request) -> None:
        seen: set[str] = set()
        for number, name in enumerate(request.outputs):
            if name not in self._outputs:
                raise invalid(
                    f"the model has no output '{name}'",
                    field=f"outputs[{number}].name",
                    hint=f"its outputs are {', '.join(sorted(self._outputs)) or 'none'}",
                )
            if name in seen:
                raise invalid(f"output '{name}' is given twice", field=f"outputs[{number}].name")
            seen.add(name)


def _field(request: Request, name: str, rest: str) -> str:
    return f"inputs[{list(request.inputs).index(name)}].{rest}"

"""A graph's inputs and outputs, and how they meet the configuration.

Completes what the configuration leaves out and refuses what contradicts the file. Knows nothing
of running a model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from naiad_backends.api import Completion, ModelSpec, TensorSpec
from naiad_backends.datatypes import DATATYPES as V2_DATATYPES
from naiad_backends.errors import NaiadError, invalid, unsupported
from naiad_backends.onnx.types import DATATYPES


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the graph.

    onnx_type: as onnxruntime names it, such as `tensor(float)`.
    shape: with the batch dimension, -1 for any size; empty for a scalar and, as onnxruntime does
        not tell them apart, for a tensor of unknown rank.
    optional: the graph runs without this input.
    """

    name: str
    onnx_type: str
    shape: tuple[int, ...]
    optional: bool = False

    @property
    def datatype(self) -> str:
        """The v2 datatype; empty if the protocol has none for it."""
        if self.onnx_type.startswith("optional("):
            return DATATYPES.get(self.onnx_type[len("optional(") : -1], "")
        return DATATYPES.get(self.onnx_type, "")

    @property
    def can_batch(self) -> bool:
        """Whether the first dimension can be the batch."""
        return self.shape[:1] == (-1,)


@dataclass(frozen=True, slots=True)
class Signature:
    """All inputs and outputs of a graph, in its order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class _Side:
    """The inputs or the outputs: the file's ports and what the configuration says of them.

    of_server: tensors that only the server and the model see.
    """

    field: str
    ports: tuple[Port, ...]
    given: tuple[TensorSpec, ...]
    of_server: tuple[TensorSpec, ...] = ()
    split: frozenset[str] = frozenset()
    """Outputs that come for the whole batch, in any shape."""

    def places(self) -> Iterator[tuple[str, TensorSpec]]:
        """All tensors, each with the field of the configuration that it comes from."""
        for i, given in enumerate(self.given):
            yield f"{self.field}[{i}]", given
        for given in self.of_server:
            yield "sequence_batching", given


def read_signature(session: Any) -> Signature:
    """The signature of an `onnxruntime.InferenceSession`."""
    return Signature(
        tuple(_port(arg, arg.type.startswith("optional(")) for arg in session.get_inputs())
        + tuple(_port(arg, True) for arg in session.get_overridable_initializers()),
        tuple(_port(arg, False) for arg in session.get_outputs()),
    )


def _port(arg: Any, optional: bool) -> Port:
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in arg.shape)
    return Port(arg.name, arg.type, shape, optional)


def complete(signature: Signature, spec: ModelSpec, default_max_batch_size: int) -> Completion:
    """Fill in what `spec` leaves out.

    Inputs that are given are checked, and required ones that are missing are added. Outputs that
    are given are checked and stay the only ones: a configuration may serve some of them. What the
    server adds and keeps is checked and left out.
    A model batches if every input and output has a dynamic first dimension, unless the
    configuration gives dims that include it.

    Raises INVALID_ARG where `spec` contradicts the graph, UNSUPPORTED for a tensor type that the
    v2 protocol does not have.
    """
    ports = [port for port in signature.inputs if not port.optional] + list(signature.outputs)
    max_batch_size = spec.max_batch_size
    if (
        max_batch_size == 0
        and all(port.can_batch for port in ports)
        and _leave_out_batch(signature, spec)
    ):
        max_batch_size = default_max_batch_size
    batched = max_batch_size > 0
    for side in _sides(signature, spec):
        for field, given in side.places():
            _check_tensor(side, field, given, batched)
        if batched:
            _check_batch(side, [port for port in side.ports if not port.optional])
    given_names = {given.name for given in spec.inputs + spec.server_inputs}
    kept = {given.name for given in spec.server_outputs}
    inputs = [_complete_tensor(given, signature.inputs, batched) for given in spec.inputs]
    inputs += [
        _from_port(port, "input", batched)
        for port in signature.inputs
        if not port.optional and port.name not in given_names
    ]
    outputs = [_complete_tensor(given, signature.outputs, batched) for given in spec.outputs]
    outputs = outputs or [
        _from_port(port, "output", batched) for port in signature.outputs if port.name not in kept
    ]
    return Completion(tuple(inputs), tuple(outputs), max_batch_size)


def check(signature: Signature, spec: ModelSpec) -> None:
    """Raise INVALID_ARG where a complete `spec` contradicts the graph."""
    batched = spec.max_batch_size > 0
    for side in _sides(signature, spec):
        for field, given in side.places():
            _check_tensor(side, field, given, batched)
        served = {given.name for _, given in side.places()}
        if batched:
            _check_batch(side, [port for port in side.ports if port.name in served - side.split])
    named = {given.name for given in spec.inputs + spec.server_inputs}
    named |= _check_made(signature, spec)
    for port in signature.inputs:
        if not port.optional and port.name not in named:
            raise invalid(
                f"the file also needs input '{port.name}' ({port.onnx_type}, shape"
                f" {list(port.shape)}), which the configuration leaves out",
                field="input",
            )


def _check_made(signature: Signature, spec: ModelSpec) -> set[str]:
    """The inputs that are made for each batch; raises INVALID_ARG where the file has no such."""
    ports = {port.name: port for port in signature.inputs}
    for i, made in enumerate(spec.batch_inputs):
        for name in made.targets:
            port = ports.get(name)
            if port is None or port.datatype != made.datatype:
                found = "no such input" if port is None else _config_name(port.datatype)
                raise invalid(
                    f"the file has {found} for '{name}', the configuration makes a"
                    f" {_config_name(made.datatype)}",
                    field=f"batch_input[{i}].target_name",
                )
    return {name for made in spec.batch_inputs for name in made.targets}


def _sides(signature: Signature, spec: ModelSpec) -> tuple[_Side, _Side]:
    return (
        _Side("input", signature.inputs, spec.inputs, spec.server_inputs),
        _Side(
            "output",
            signature.outputs,
            spec.outputs,
            spec.server_outputs,
            frozenset(name for output in spec.batch_outputs for name in output.targets),
        ),
    )


def _leave_out_batch(signature: Signature, spec: ModelSpec) -> bool:
    """Whether no given dims are as long as the graph's shape with its batch dimension."""
    return not any(
        _has_dims(given) and port.name == given.name and len(given.model_dims) == len(port.shape)
        for side in _sides(signature, spec)
        for _, given in side.places()
        for port in side.ports
    )


def _has_dims(given: TensorSpec) -> bool:
    return bool(given.dims) or given.reshape is not None


def _check_tensor(side: _Side, field: str, given: TensorSpec, batched: bool) -> None:
    port = next((port for port in side.ports if port.name == given.name), None)
    if port is None:
        names = ", ".join(port.name for port in side.ports) or "none"
        raise invalid(
            f"the file has no {side.field} '{given.name}'",
            field=f"{field}.name",
            hint=f"its {side.field}s: {names}",
        )
    if not port.datatype:
        raise _no_datatype(port, side.field, f"{field}.data_type")
    if given.datatype and given.datatype != port.datatype:
        raise invalid(
            f"the file has {_config_name(port.datatype)} for '{port.name}', the configuration says"
            f" {_config_name(given.datatype)}",
            field=f"{field}.data_type",
        )
    if given.optional and not port.optional:
        raise invalid(
            f"the file cannot run without input '{port.name}', the configuration says that it is"
            " optional",
            field=f"{field}.optional",
        )
    if given.ragged:
        if port.shape != (-1,):
            raise invalid(
                f"the file has shape {list(port.shape)} for '{port.name}', which cannot take the"
                " elements of a ragged batch behind one another",
                field=f"{field}.allow_ragged_batch",
                hint="export the model with a shape of one dynamic dimension",
            )
    elif given.name in side.split:
        return
    elif _has_dims(given) and not _dims_agree(side, port, given, batched):
        raise _wrong_dims(port, given, field, batched)


def _dims_agree(side: _Side, port: Port, given: TensorSpec, batched: bool) -> bool:
    if not port.shape:  # a scalar, or unknown: onnxruntime will tell at run time
        return True
    expected = port.shape[1:] if batched else port.shape
    # An output may promise less than the file does, an input may not allow more.
    return len(expected) == len(given.model_dims) and all(
        theirs in (-1, ours) or (ours == -1 and side.field == "output")
        for theirs, ours in zip(expected, given.model_dims, strict=True)
    )


def _wrong_dims(port: Port, given: TensorSpec, field: str, batched: bool) -> NaiadError:
    part = "dims" if given.reshape is None else "reshape.shape"
    expected = list(port.shape[1:] if batched else port.shape)
    without = " without its batch dimension" if batched else " (max_batch_size is 0)"
    hint = ""
    if not batched and port.can_batch and len(given.model_dims) == len(port.shape) - 1:
        hint = "set max_batch_size to 1 or more, or add the first dimension"
    if batched and len(given.model_dims) == len(port.shape):
        hint = "leave out the first dimension: max_batch_size stands for it"
    if batched and not expected and given.dims == (1,):
        hint = "add reshape { shape: [ ] }"
    return invalid(
        f"the file has {expected} for '{port.name}'{without}, the configuration says"
        f" {list(given.model_dims)}",
        field=f"{field}.{part}",
        hint=hint,
    )


def _check_batch(side: _Side, ports: Sequence[Port]) -> None:
    for port in ports:
        # Outputs of unknown rank are as empty as scalars; they are looked at after each run.
        unknown = side.field == "output" and not port.shape
        if not (port.can_batch or unknown):
            raise invalid(
                f"the model cannot batch: the file has shape {list(port.shape)} for"
                f" {side.field} '{port.name}', whose first dimension is not dynamic",
                field="max_batch_size",
                hint="set max_batch_size to 0, or export the model with a dynamic batch",
            )


def _complete_tensor(given: TensorSpec, ports: Sequence[Port], batched: bool) -> TensorSpec:
    port = next(port for port in ports if port.name == given.name)
    if not _has_dims(given):
        dims, reshape = _dims(port, batched)
        given = replace(given, dims=dims, reshape=reshape)
    return given if given.datatype else replace(given, datatype=port.datatype)


def _from_port(port: Port, kind: str, batched: bool) -> TensorSpec:
    if not port.datatype:
        raise _no_datatype(port, kind, kind)
    dims, reshape = _dims(port, batched)
    return TensorSpec(port.name, port.datatype, dims, reshape)


def _dims(port: Port, batched: bool) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """dims and reshape; the configuration cannot say empty dims, so a scalar is [1] to clients."""
    dims = port.shape[1:] if batched else port.shape
    return (dims, None) if dims else ((1,), ())


def _no_datatype(port: Port, kind: str, field: str) -> NaiadError:
    hint = "export the model without it"
    if kind == "output":
        hint = "list the outputs to serve, without this one, in the configuration"
    return unsupported(
        f"{kind} '{port.name}' is a {port.onnx_type}, which the v2 protocol cannot carry",
        field=field,
        hint=hint,
    )


def _config_name(datatype: str) -> str:
    known = V2_DATATYPES.get(datatype)
    return datatype if known is None else known.config_name

"""What the server itself gives to a model with the requests of a sequence: controls and states.

Knows tensors and the configuration, and nothing of queues or of when anything runs. Source:
Triton's control inputs and implicit state.
"""

from collections.abc import Mapping

import numpy as np

from naiad.repository.scheduling import Control, SequenceBatching
from naiad_backends.api import ModelSpec, Request, Response, Tensor, TensorSpec
from naiad_backends.datatypes import DATATYPES
from naiad_backends.errors import internal, invalid

Memory = Mapping[str, Tensor]
"""What a model is given with each request of one sequence: its states and its id, by input, with a
batch dimension of 1 if the model batches."""


class Feed:
    """The controls and states of one model version."""

    def __init__(
        self, batching: SequenceBatching, spec: ModelSpec, initial: Mapping[str, Tensor]
    ) -> None:
        """initial: the first states by input, without a batch dimension."""
        self._lead = (1,) if spec.max_batch_size else ()
        flags = [control for control in batching.controls if control.fact != "CORRID"]
        self._flags = {
            (start, end): {
                control.tensor.name: self._flag(control, {"START": start, "END": end})
                for control in flags
            }
            for start in (False, True)
            for end in (False, True)
        }
        ids = [control for control in batching.controls if control.fact == "CORRID"]
        self._id = ids[0].tensor if ids else None
        self._id_type = None if self._id is None else str if self._id.datatype == "BYTES" else int
        self._null = {
            control.tensor.name: self._flag(control, {"READY": False}) for control in flags
        }
        if self._id is not None:
            self._null[self._id.name] = self._of_id(self._id, 0)
        self._outputs = tuple(output.name for output in spec.outputs)
        self._states = {state.output.name: state.input for state in batching.states}
        self._wanted = self._with_states(self._outputs)
        self._vary = tuple(spec.name for spec in self._states.values() if -1 in spec.dims)
        self._initial = {
            name: Tensor.from_numpy(
                name, tensor.numpy().reshape(*self._lead, *tensor.shape), tensor.datatype
            )
            for name, tensor in initial.items()
        }

    def check_id(self, id: int | str) -> None:
        """Raises INVALID_ARG unless `id` is one that the model can be told."""
        if self._id_type is not None and not isinstance(id, self._id_type):
            raise invalid(
                f"the id {id!r:.60} of the sequence is of the wrong kind: the model takes"
                f" {'strings' if self._id_type is str else 'integers'}",
                field='parameters["sequence_id"]',
            )

    def own_id(self, number: int) -> int | str:
        """A number as an id that the model can be told."""
        return str(number) if self._id_type is str else number

    def begin(self, id: int | str) -> Memory:
        """What belongs to a sequence that has only begun."""
        if self._id is None:
            return self._initial
        return {**self._initial, self._id.name: self._of_id(self._id, id)}

    def key(self, memory: Memory) -> tuple[tuple[int, ...], ...]:
        """What must be equal for the states of two sequences to run side by side."""
        return tuple([memory[name].shape for name in self._vary]) if self._vary else ()

    def inputs(
        self, own: Mapping[str, Tensor], start: bool, end: bool, memory: Memory
    ) -> dict[str, Tensor]:
        """What goes to the model for a request with its `own` inputs."""
        return {**own, **self._flags[start, end], **memory}

    def outputs(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """What the model is asked for where a client asks for `asked`; empty means all."""
        if not self._states:
            return asked
        return self._with_states(asked) if asked else self._wanted

    def _with_states(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names + tuple([name for name in self._states if name not in names])

    def keep(self, response: Response, asked: tuple[str, ...], memory: Memory) -> Memory:
        """What belongs to the sequence after this response, from which all goes that the client
        did not ask for.

        Raises INTERNAL if the model did not give a state, or gave one of another shape.
        """
        if not self._states:
            return memory
        wanted = asked or self._outputs
        given: list[Tensor] = []
        states = dict(memory)
        missing = len(self._states)
        for tensor in response.outputs:
            spec = self._states.get(tensor.name)
            if spec is not None:
                self._check_shape(tensor, spec)
                states[spec.name] = tensor.renamed(spec.name)
                missing -= 1
            if spec is None or tensor.name in wanted:
                given.append(tensor)
        if missing:
            names = {tensor.name for tensor in response.outputs}
            raise internal(f"the model gave no state '{min(self._states.keys() - names)}'")
        response.outputs = given
        return states

    def _check_shape(self, tensor: Tensor, spec: TensorSpec) -> None:
        shape = self._lead + spec.dims
        if tensor.shape == shape:
            return
        sizes = tensor.shape[len(self._lead) :]
        if len(tensor.shape) != len(shape) or any(
            size != dim != -1 for size, dim in zip(sizes, spec.dims, strict=True)
        ):
            raise internal(
                f"the model gave state '{tensor.name}' of shape {list(tensor.shape)}, but the"
                f" configuration says {list(shape)}"
            )

    def filler(self, like: Request) -> Request:
        """A request that stands for none, in a row between those that are like this one."""
        null = self._null
        inputs = {
            name: null.get(name) or _zeros(name, tensor) for name, tensor in like.inputs.items()
        }
        return Request(like.model_name, like.model_version, inputs=inputs, outputs=like.outputs)

    def _flag(self, control: Control, facts: Mapping[str, bool]) -> Tensor:
        """facts: START and END are false and READY is true where nothing is said."""
        name, datatype = control.tensor.name, control.tensor.datatype
        truth = facts.get(control.fact, control.fact == "READY")
        value = control.values[truth]
        return _encoded(
            Tensor.from_numpy(name, np.full((*self._lead, 1), value, DATATYPES[datatype].numpy))
        )

    def _of_id(self, tensor: TensorSpec, id: int | str) -> Tensor:
        shape = (*self._lead, 1)
        kind = DATATYPES[tensor.datatype]
        if not kind.size:
            return Tensor.from_numpy(tensor.name, np.full(shape, str(id or "").encode(), object))
        # As in Triton, the low bits where the type is too small.
        low = (int(id) % 2 ** (8 * kind.size)).to_bytes(kind.size, "little")
        return Tensor.from_wire(tensor.name, tensor.datatype, shape, low)


def _zeros(name: str, like: Tensor) -> Tensor:
    kind = DATATYPES[like.datatype]
    zeros = np.zeros(like.shape, kind.numpy) if kind.size else np.full(like.shape, b"", object)
    return Tensor.from_numpy(name, zeros, like.datatype)


def _encoded(tensor: Tensor) -> Tensor:
    """The same, with its bytes made: `gather` joins those at less cost."""
    tensor.wire()
    return tensor

"""The contract between the server and a backend: the vocabulary and what each side promises.

A backend turns files into a `Model`, a model into `Instance`s, and an instance turns a list of
requests into a list of responses. Requests arrive checked against the model's configuration:
names, datatypes, shapes and byte sizes fit, and a batching model's first dimension is its batch.

NumPy is the only thing known here: no wire format, no scheduler, no framework.
"""

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from naiad_backends.datatypes import BY_NUMPY, DATATYPES
from naiad_backends.errors import NaiadError, QueueFull, internal, invalid, unsupported

if TYPE_CHECKING:
    from naiad_backends.generation import TextTools
    from naiad_backends.services import Services

Parameter = bool | int | float | str
Array = np.ndarray[Any, np.dtype[Any]]
Buffer = bytes | bytearray | memoryview

_LENGTH = struct.Struct("<I")

_SMALL = 4_096


class Tensor:
    """A named tensor that is a view of the buffer it came in, decoded when somebody asks.

    datatype: wire name (`FP32`, `BYTES`, ...).  shape: with the batch dimension, if there is one.

    `numpy()` has that shape; BF16 is uint16 bit patterns, BYTES is an object array of `bytes`.
    `wire()` is the v2 binary form: little-endian, row-major, BYTES elements behind a 4-byte length.

    Tensors are read-only once made: neither side may write into one, because a response may share
    memory with its request and several requests may share a buffer. They keep their buffer alive.
    """

    __slots__ = ("_array", "_wire", "datatype", "name", "shape")

    def __init__(
        self,
        name: str,
        datatype: str,
        shape: tuple[int, ...],
        array: Array | None,
        wire: Buffer | None,
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self._array = array
        self._wire = wire

    @classmethod
    def from_wire(cls, name: str, datatype: str, shape: tuple[int, ...], wire: Buffer) -> "Tensor":
        """Wrap received bytes without copying them.

        Raises INVALID_ARG if the datatype is unknown or the bytes do not fit datatype and shape.
        """
        kind = DATATYPES.get(datatype)
        if kind is None:
            raise unknown_datatype(datatype)
        count = math.prod(shape)
        if kind.size == 0:
            return cls(name, datatype, shape, split_bytes(name, wire, count).reshape(shape), wire)
        size = wire.nbytes if type(wire) is memoryview else len(wire)
        if size != count * kind.size:
            raise invalid(
                f"tensor '{name}' has {size} bytes, but datatype {datatype} and shape"
                f" {list(shape)} need {count * kind.size}"
            )
        return cls(name, datatype, shape, None, wire)

    @classmethod
    def from_numpy(cls, name: str, array: Array, datatype: str | None = None) -> "Tensor":
        """Wrap an array without copying it; `datatype` is needed for BF16 bit patterns only.

        An object array must hold `bytes`. Raises INTERNAL for an array of no v2 datatype.
        """
        if datatype is None:
            kind = BY_NUMPY.get(array.dtype)
            if kind is None:
                raise internal(
                    f"tensor '{name}' is a NumPy array of type {array.dtype},"
                    " which no v2 datatype stands for"
                )
            datatype = kind.name
        return cls(name, datatype, array.shape, array, None)

    def numpy(self) -> Array:
        """The tensor as an array of `shape`; a view where the datatype allows it."""
        array = self._array
        if array is None:
            wire = b"" if self._wire is None else self._wire
            kind = DATATYPES[self.datatype]
            if kind.size:
                array = np.frombuffer(wire, kind.numpy).reshape(self.shape)
            else:
                count = math.prod(self.shape)
                array = split_bytes(self.name, wire, count).reshape(self.shape)
            self._array = array
        return array

    def wire(self) -> Buffer:
        """The tensor as contiguous bytes in the v2 binary form; of a large one a view where
        possible."""
        wire = self._wire
        if wire is None:
            array = self.numpy()
            if array.dtype.kind == "O":
                wire = join_bytes(array)
            elif array.size == 0:
                wire = b""
            else:
                little = array.astype(DATATYPES[self.datatype].numpy, copy=False)
                # A view costs three steps; up to some size a copy costs less than that.
                small = little.nbytes <= _SMALL
                wire = little.tobytes() if small else np.ascontiguousarray(little).data.cast("B")
            self._wire = wire
        return wire

    @property
    def encoded(self) -> bool:
        """Whether `wire()` costs nothing, because the tensor was received or sent before."""
        return self._wire is not None

    def renamed(self, name: str) -> "Tensor":
        """The same tensor under another name; shares the memory and the forms made so far."""
        return Tensor(name, self.datatype, self.shape, self._array, self._wire)

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.datatype}, {list(self.shape)})"


def unknown_datatype(datatype: str, field: str = "") -> NaiadError:
    """The error for a datatype name that the v2 protocol does not have."""
    return invalid(
        f"unknown datatype '{datatype}'", field=field, hint=f"use one of {', '.join(DATATYPES)}"
    )


def split_bytes(name: str, wire: Buffer, count: int) -> Array:
    """Decode `count` length-prefixed elements that must use up the buffer exactly.

    Returns an object array of shape [count]. Raises INVALID_ARG, with the tensor's name.
    """
    data = bytes(wire)
    if count * 4 > len(data):
        raise invalid(
            f"tensor '{name}' has {len(data)} bytes, too few for {count} BYTES elements,"
            " each of which starts with a 4-byte length"
        )
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + 4
        end = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if end > len(data):
            raise invalid(
                f"tensor '{name}' is cut off: BYTES element {len(elements)} reaches to byte {end}"
                f" of {len(data)}",
                hint="each element is a 4-byte little-endian length followed by its bytes",
            )
        elements.append(data[start:end])
        at = end
    if len(elements) != count:
        raise invalid(
            f"tensor '{name}' holds {len(elements)} BYTES elements, but its shape needs {count}"
        )
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array


def join_bytes(array: Array) -> bytes:
    """The elements of an array of `bytes`, each behind its length as 4 bytes, little-endian."""
    parts: list[bytes] = []
    for element in array.ravel():
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


class Trace(ABC):
    """The record of a request that is traced; a backend may add to what the server puts there.

    Concurrency: any thread may call it. What comes after the last response may be lost.
    """

    @abstractmethod
    def mark(self, name: str, ns: int = 0) -> None:
        """Note that something happened, such as CUSTOM_ACTIVITY.

        ns: when, by `time.perf_counter_ns()`; 0 is now.
        """

    @abstractmethod
    def tensors(self, activity: str, tensors: Iterable[Tensor]) -> None:
        """Note what tensors hold now, such as TENSOR_BACKEND_OUTPUT."""


@dataclass(slots=True)
class Request:
    """One inference request, free of any wire format.

    model_version: decimal digits, or empty for the version that the server chooses.
    inputs: by name, in the order in which they came.
    outputs: names of the wanted outputs; empty means all of the model's `outputs`.
    classes: by output, how many of its best classes are wanted in its place. The server sees to
        that; a backend gives the output as ever.
    cancelled: nobody waits for the answer any more, because the client has left or its deadline has
        passed. The server sets it by `cancel`, at any moment while the model runs; any thread may
        read it. It never becomes False again.
    on_cancel: called on the event loop when that happens, for a model that runs elsewhere; belongs
        to the instance that has the request.
    callers: the instances that wait for the answer and do nothing else meanwhile; the last one has
        made the request, the others wait for that one. Empty for a client's own.
    correlation_id: the sequence that the request belongs to; 0 or "" means none.
    priority: 0 means the model's default level.
    timeout_us: how long it may wait in a queue, in microseconds; 0 means the model's default.
    parameters: everything else that the client sent along, for the model to read.
    trace: None unless this request is one of those that are traced.
    """

    model_name: str
    model_version: str = ""
    id: str = ""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    correlation_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    priority: int = 0
    timeout_us: int = 0
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    classes: dict[str, int] | None = None
    cancelled: bool = False
    on_cancel: Callable[[], None] | None = None
    callers: "tuple[Instance, ...]" = ()
    trace: Trace | None = None

    def cancel(self) -> None:
        """Nobody waits any more; on the event loop."""
        if not self.cancelled:
            self.cancelled = True
            if self.on_cancel is not None:
                self.on_cancel()


@dataclass(slots=True)
class Response:
    """The answer to one request: outputs, or an error.

    A backend fills `outputs`, `parameters`, `error` and `reschedule`; the server adds the model's
    name and the version that ran.

    reschedule: the model is not done with the request: run it again. Nothing of this response goes
        to the client; the server keeps the states that it has. Only where the configuration has
        `sequence_batching.iterative_sequence`.
    """

    outputs: Sequence[Tensor] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    error: NaiadError | None = None
    model_name: str = ""
    model_version: str = ""
    reschedule: bool = False


@dataclass(slots=True)
class Execution:
    """What one call of `Instance.execute` did.

    responses: one per request, in the order of the requests.
    compute_start_ns, compute_end_ns: `time.perf_counter_ns()` when the inputs were ready for the
        framework and when it had answered; 0 where the backend has no such phases. What lies
        before is reported as compute_input, what lies behind as compute_output.
    """

    responses: Sequence[Response]
    compute_start_ns: int = 0
    compute_end_ns: int = 0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as the configuration describes it.

    dims: the shape without the batch dimension; -1 stands for any size.
    reshape: the shape that the model itself sees instead of `dims`; None means no reshape.
    optional: the input may be left out of a request.
    ragged: requests of different shapes may share a batch; see `naiad_backends.ragged`.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    ragged: bool = False

    @property
    def model_dims(self) -> tuple[int, ...]:
        """The shape without the batch dimension that the framework has to see."""
        return self.dims if self.reshape is None else self.reshape


class BatchInputKind(StrEnum):
    """What a tensor that is made for a batch tells of its source input, by Triton's names."""

    ELEMENT_COUNT = "BATCH_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT = "BATCH_ACCUMULATED_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT_WITH_ZERO = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
    MAX_ELEMENT_COUNT_AS_SHAPE = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
    ITEM_SHAPE = "BATCH_ITEM_SHAPE"
    ITEM_SHAPE_FLATTEN = "BATCH_ITEM_SHAPE_FLATTEN"


@dataclass(frozen=True, slots=True)
class BatchInput:
    """A tensor that the backend makes for each batch, under all names of `targets`.

    datatype: INT32 or FP32.  source: the input that it tells of.
    """

    kind: BatchInputKind
    targets: tuple[str, ...]
    datatype: str
    source: str


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """Outputs that come back for the whole batch as one row of elements. Each request gets as many
    as the output has with the sizes of the request's own `source` input in place of its -1."""

    targets: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An execution provider that the configuration asks for, with Triton's name and parameters."""

    name: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one instance runs. `device` is the GPU's number, 0 for the CPU."""

    name: str
    kind: Literal["CPU", "GPU", "MODEL"] = "CPU"
    device: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All that a backend needs to know of one version of a model.

    path: the version's folder.  filename: the model's file (or folder) in it.
    max_batch_size: 0 means that tensors have no batch dimension.
    inputs, outputs: may be empty before completion.
    parameters: the configuration's free map.
    graph_level: `optimization.graph.level`; 0 is the default, -1 basic, 1 extended, as in Triton.
    cpu_accelerators, gpu_accelerators: execution providers in order of preference.
    placements: one per instance that the server will ask for at first.
    decoupled: a request may have any number of responses; instances are `StreamingInstance`s.
    batch_inputs, batch_outputs: what tells a model of the parts of a ragged batch.
    server_inputs: what the server adds to each request beside `inputs`, such as a sequence's
        controls and states: inputs to the model like the others, which clients do not see.
    server_outputs: what the server keeps for itself: outputs like the others, but given only to a
        request that names them.
    runtime: the file that the backend itself runs, where a backend is written in Python.
    config: the whole configuration as JSON text, for backends that hand it on to a model.
    """

    name: str
    version: int
    path: Path
    filename: str = ""
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    graph_level: int = 0
    cpu_accelerators: tuple[Accelerator, ...] = ()
    gpu_accelerators: tuple[Accelerator, ...] = ()
    placements: tuple[Placement, ...] = ()
    decoupled: bool = False
    batch_inputs: tuple[BatchInput, ...] = ()
    batch_outputs: tuple[BatchOutput, ...] = ()
    server_inputs: tuple[TensorSpec, ...] = ()
    server_outputs: tuple[TensorSpec, ...] = ()
    runtime: str = ""
    config: str = "{}"


@dataclass(frozen=True, slots=True)
class Completion:
    """What a backend read from the model's file for `auto-complete`.

    One that says whether there is a batcher is what the model's author wants: then `max_batch_size`
    and `optional` count also in a configuration that gives all tensors.

    inputs, outputs: all of them; configuration fields that were given must agree and stay.
    max_batch_size: the batch size to use when the configuration gives none; 0 if the model
        cannot batch.
    dynamic_batching: whether a model whose configuration names no scheduler gets a batcher; None
        for yes if `max_batch_size` is more than 1.
    decoupled: the same field of the configuration where that does not say.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    dynamic_batching: bool | None = None
    decoupled: bool = False


class Instance(ABC):
    """One copy of a model that runs one batch at a time.

    Ownership: the server owns it and calls `close` exactly once, after the last `execute`.
    Concurrency: `execute` is never called twice at once on one instance; different instances of
    one model run in parallel, so what they share must bear that.
    """

    blocking: bool = True
    """True: `execute` takes long and releases the GIL meanwhile; it gets a thread of its own.
    False: it takes microseconds and is called on the event loop itself."""

    @abstractmethod
    def execute(self, requests: Sequence[Request]) -> Execution:
        """Answer every request, in order.

        requests: at least one; together at most `max_batch_size` batch elements if that is not 0.
        Failure: what concerns one request goes into its `Response.error`; an exception fails all
        of them (a NaiadError with its own code, anything else as INTERNAL) and the instance goes
        on serving.
        Cancelling: a request may be `cancelled` before or while this runs. A model that takes long
        looks at it now and then and stops when all requests are; what it answers to a cancelled one
        goes nowhere, but it must be one response as ever, and its neighbours get theirs.
        Lifetime: inputs may be kept as long as the response refers to them, not longer.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what only this instance holds. Must not raise."""

    def trouble(self) -> str:
        """Why it cannot serve now, for people to read; empty if it can. On the event loop, and
        quick: it tells what is known and asks nobody."""
        return ""

    async def unready(self) -> str:
        """The same, but a model with an opinion of its own is asked. On the event loop; ends within
        seconds and never raises. Several may ask at once."""
        return self.trouble()


class Responder(ABC):
    """Where the responses to one request of a decoupled model go.

    Ownership: the server's; the instance may keep it until it has sent the last response.
    Concurrency: any thread may call it, also after `stream` has returned.
    """

    @abstractmethod
    def send(self, response: Response | None, final: bool = False) -> None:
        """Send a response, or with None and `final` only the word that there is none any more.

        final: nothing follows. Exactly one call must say so, else the request never ends.
        Failure: never blocks and never raises for a client that has left; raises INTERNAL for a
        call after the final one, or one with nothing to say.
        """

    @property
    @abstractmethod
    def cancelled(self) -> bool:
        """Nobody waits for responses any more: stop early, and then send the final word."""


class StreamingInstance(Instance):
    """An instance of a decoupled model: 0, 1 or many responses to a request, at any time."""

    @abstractmethod
    def stream(self, request: Request, responder: Responder) -> None:
        """Begin to answer a request; the instance gets the next one when this returns.

        Responses may be sent before and after returning. An exception ends the request with its
        text as the final response; `execute` is not called on such a model.
        """


class InstanceState(StrEnum):
    """Whether a `RemoteInstance` takes work.

    READY: yes.  RESTARTING: soon again; work goes to others, or waits.  DOWN: not soon; work for
    which there is no other instance fails at once.
    """

    READY = "READY"
    RESTARTING = "RESTARTING"
    DOWN = "DOWN"


Done = Callable[[Execution | NaiadError | None], None]
"""Takes what became of a batch: an Execution, the error of all its requests, or None if it was not
begun, so that it can run elsewhere or later."""


class RemoteInstance(StreamingInstance):
    """An instance that does its work elsewhere, such as in a process of its own, and keeps no
    thread of the server waiting meanwhile.

    The server uses `begin`. `execute` and `stream` do the same for a caller on another thread, such
    as a warm-up, which waits.
    Concurrency: all but those two, and `close`, belongs to the server's event loop.
    """

    restarts: int = 0
    """How often it had to be begun anew because it had died."""

    @property
    @abstractmethod
    def state(self) -> InstanceState:
        """Whether it takes work. See also `trouble`."""

    @property
    @abstractmethod
    def window(self) -> int:
        """How many batches it wants at once, at least 1: what is more than 1 is sent ahead, so that
        it need not wait for the server between two that take microseconds."""

    @property
    def window_for_calls(self) -> int:
        """The same, at most `window`, for the calls of other models: how many batches it may have
        where none of them would keep a call waiting that it waits for itself."""
        return 1

    @abstractmethod
    def watch(self, listener: Callable[[], None]) -> None:
        """Have it called after each change of `state`, once the ends of all work that the change
        has ended are told, and when a window has grown without an end of work."""

    @abstractmethod
    def begin(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        """Hand over a batch; never blocks and never raises.

        responders: one for each request of a decoupled model, none for others. Then responses go
            there, and those of the Execution tell only which requests are to be run again.
        done: called once, on the event loop, maybe before this returns. What was handed over
            first has its end first. None for an instance that was not READY.
        """

    def refusal(self, waiting: int) -> QueueFull | None:
        """What a request hears that no instance has room for now, if as many wait already as may;
        None lets it wait, too. The instances of a model say the same.

        waiting: how many do, for each instance.
        """
        return None


class Model(ABC):
    """One loaded version of a model: what its instances share.

    Ownership: the server owns it and calls `close` once, after all its instances were closed.
    """

    text: "TextTools | None" = None
    """The tokens of a model that writes or embeds text, if its backend knows them."""

    makes_batches: bool = False
    """True: its instances take requests as they come and make batches of their own, so that nothing
    waits for a dynamic batcher."""

    @abstractmethod
    def instance(self, placement: Placement) -> Instance:
        """Make an instance. Called on a loader thread, one call at a time for each model; for a
        model that serves as well, on a device that it has had instances on when it was loaded.

        Failure: a NaiadError fails the load with its text; so does any other exception.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back everything. Must not raise."""


class Backend(ABC):
    """One framework. Made once for each server process, on first use of its name.

    Concurrency: `complete` and `load` run on loader threads and may run at the same time for
    different models.
    """

    default_cpu_instances: int = 1
    """How many instances a model on the CPU gets when its configuration does not say."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """options: the `--backend-config=<backend>,<key>=<value>` pairs for this backend."""
        self.options = options

    def attach(self, services: "Services") -> None:
        """Called once, before all else: what the server does for models that ask for it."""
        self.services = services

    def gpus(self) -> Sequence[int]:
        """Numbers of the GPUs that this backend can use here; empty means CPU only."""
        return ()

    def require_device(self, placement: Placement) -> None:
        """Raises UNSUPPORTED for an instance on a GPU that is none of `gpus`."""
        if placement.kind != "GPU":
            return
        gpus = self.gpus()
        if placement.device not in gpus:
            raise unsupported(
                f"instance '{placement.name}' wants GPU {placement.device}",
                field="instance_group",
                hint=f"GPUs here: {', '.join(map(str, gpus)) or 'none'}",
            )

    @abstractmethod
    def complete(self, spec: ModelSpec) -> Completion | None:
        """Read from the model's file what the configuration may leave out.

        Returns None if this kind of model cannot tell. Called before `load`, with the parts that
        the configuration gives filled in.
        Failure: NaiadError INVALID_ARG when the file cannot be read or contradicts `spec`.
        """

    @abstractmethod
    def load(self, spec: ModelSpec) -> Model:
        """Load one version. `spec` is complete. Its placements tell of all devices that instances
        will be on; how many there are may change later.

        Failure: a NaiadError whose text tells the user what is wrong with the model; everything
        taken so far must be given back first.
        """

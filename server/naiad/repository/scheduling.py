"""What a configuration says of scheduling, as plain values: times in nanoseconds, 0 for none.

Knows the messages of the configuration, and nothing of how anything is scheduled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from naiad.repository.pipelines import StepExtras, step_paths
from naiad_backends.api import TensorSpec
from naiad_backends.datatypes import BY_CONFIG_NAME
from naiad_backends.errors import invalid
from naiad_proto import model_config_pb2 as pb

INITIAL_STATES = "initial_state"
"""The folder of a model with the files of its first states."""

AUTO_DELAY = "max_queue_delay_microseconds"
"""The parameter of a model that, set to `auto`, lets the server choose the queue delay."""

AUTO = "auto"

DELAY_FIELD = f"dynamic_batching.{AUTO_DELAY}"
"""The field that the parameter stands for; config.yaml may have `auto` in it."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """`ModelQueuePolicy` of one priority level.

    max_size: requests that may wait.  timeout_ns: how long each may.  delays: a request whose time
    is up waits behind the others instead of being refused.  override: a request may ask for a
    shorter time itself, or for one where there is none.
    """

    max_size: int = 0
    timeout_ns: int = 0
    delays: bool = False
    override: bool = False

    def timeout(self, asked_ns: int) -> int:
        """The time in the queue of a request that asks for `asked_ns`; 0 means no limit."""
        if not asked_ns or not self.override:
            return self.timeout_ns
        return min(asked_ns, self.timeout_ns) if self.timeout_ns else asked_ns


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """`ModelDynamicBatching`.

    preferred: batch sizes worth sending at once; none means the largest one.
    delay_ns: how long the oldest request may wait for a better batch; None lets the server choose.
    levels: priority levels, 1 first; 0 means that there are none.
    default_level: of requests that name none, or one beyond `levels`.
    policies: by level; `policy` is that of all others.
    """

    preferred: tuple[int, ...] = ()
    delay_ns: int | None = 0
    preserve_ordering: bool = False
    levels: int = 0
    default_level: int = 0
    policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)

    def level(self, priority: int) -> int:
        """The level of a request with this priority, 0 being none."""
        return priority if 0 < priority <= self.levels else self.default_level


PADDING = "padding_buckets"
"""The parameter of a model with the sizes that its inputs of variable size are padded to."""


def padding_buckets(config: pb.ModelConfig) -> tuple[int, ...]:
    """The sizes of `padding_buckets`, ascending. Raises INVALID_ARG unless they are numbers from 1
    up with commas between them."""
    text = config.parameters[PADDING].string_value if PADDING in config.parameters else ""
    sizes = [size.strip() for size in text.split(",")] if text else []
    if not all(size.isascii() and size.isdigit() and 0 < int(size) < 2**31 for size in sizes):
        raise invalid(
            f"'{text[:60]}' is no list of sizes",
            field=f'parameters["{PADDING}"]',
            hint="write numbers from 1 up with commas between them, such as 16,32,64",
        )
    return tuple(sorted({int(size) for size in sizes}))


def chooses_delay(config: pb.ModelConfig) -> bool:
    """Whether the queue delay is left to the server."""
    return AUTO_DELAY in config.parameters and config.parameters[AUTO_DELAY].string_value == AUTO


def dynamic_batching(config: pb.ModelConfig) -> DynamicBatching | None:
    """What a configuration asks for; None if it has no dynamic batcher."""
    if not config.HasField("dynamic_batching"):
        return None
    batching = config.dynamic_batching
    return DynamicBatching(
        preferred=tuple(batching.preferred_batch_size),
        delay_ns=None if chooses_delay(config) else batching.max_queue_delay_microseconds * 1000,
        preserve_ordering=batching.preserve_ordering,
        levels=batching.priority_levels,
        default_level=batching.default_priority_level if batching.priority_levels else 0,
        policy=_policy(batching.default_queue_policy),
        policies={
            level: _policy(batching.priority_queue_policy[level])
            for level in batching.priority_queue_policy
        },
    )


_Control = pb.ModelSequenceBatching.Control

Fact = Literal["START", "END", "READY", "CORRID"]
"""What a control input tells the model of a request's place in its sequence."""

_FACTS: Mapping[int, Fact] = {
    _Control.CONTROL_SEQUENCE_START: "START",
    _Control.CONTROL_SEQUENCE_END: "END",
    _Control.CONTROL_SEQUENCE_READY: "READY",
    _Control.CONTROL_SEQUENCE_CORRID: "CORRID",
}


@dataclass(frozen=True, slots=True)
class Control:
    """One control input. values: for false and for true; nothing for the id of the sequence."""

    fact: Fact
    tensor: TensorSpec
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """One tensor that the server keeps for a sequence: the model's output of one request is its
    input with the next.

    initial_dims: what the first one is like.  initial_file: its bytes, a file in the model's folder
    `initial_state`; empty for zeros.  path: of the field that names it.
    """

    input: TensorSpec
    output: TensorSpec
    initial_dims: tuple[int, ...]
    initial_file: str
    path: str


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """`ModelSequenceBatching`.

    idle_ns: after so long without a request a sequence is forgotten.
    oldest: the strategy, else it is `direct`.
    slots: sequences of each instance that run at a time.
    preferred: batch sizes worth sending at once, of strategy oldest; none means the largest one.
    delay_ns: how long a request may wait for a better batch.
    utilization: share of the rows worth sending at once, of strategy direct.
    iterative: a request is a sequence of its own, which the model may ask to run again.
    """

    idle_ns: int
    oldest: bool
    slots: int
    controls: tuple[Control, ...] = ()
    states: tuple[State, ...] = ()
    preferred: tuple[int, ...] = ()
    delay_ns: int = 0
    utilization: float = 0.0
    iterative: bool = False


def sequence_batching(config: pb.ModelConfig) -> SequenceBatching | None:
    """What a complete configuration asks for; None if it has no sequence batcher."""
    if not config.HasField("sequence_batching"):
        return None
    batching = config.sequence_batching
    oldest = batching.HasField("oldest")
    rows = max(config.max_batch_size, 1)
    strategy = batching.oldest if oldest else batching.direct
    return SequenceBatching(
        idle_ns=batching.max_sequence_idle_microseconds * 1000,
        oldest=oldest,
        slots=(batching.oldest.max_candidate_sequences or rows) if oldest else rows,
        controls=tuple(_controls(batching)),
        states=tuple(_states(batching)),
        preferred=tuple(batching.oldest.preferred_batch_size),
        delay_ns=strategy.max_queue_delay_microseconds * 1000,
        utilization=batching.direct.minimum_slot_utilization,
        iterative=batching.iterative_sequence,
    )


def _controls(batching: pb.ModelSequenceBatching) -> list[Control]:
    return [
        Control(
            _FACTS[control.kind],
            TensorSpec(control_input.name, _control_type(control), (1,)),
            (
                *control.int32_false_true,
                *control.fp32_false_true,
                *control.bool_false_true,
            ),
        )
        for control_input in batching.control_input
        for control in control_input.control
    ]


def _control_type(control: pb.ModelSequenceBatching.Control) -> str:
    if control.kind == _Control.CONTROL_SEQUENCE_CORRID:
        return _datatype(control.data_type)
    if control.int32_false_true:
        return "INT32"
    return "FP32" if control.fp32_false_true else "BOOL"


def _states(batching: pb.ModelSequenceBatching) -> list[State]:
    states: list[State] = []
    for index, state in enumerate(batching.state):
        datatype, dims = _datatype(state.data_type), tuple(state.dims)
        first = state.initial_state[0] if state.initial_state else None
        states.append(
            State(
                TensorSpec(state.input_name, datatype, dims),
                TensorSpec(state.output_name, datatype, dims),
                # Without more to go by, a size that may vary begins with 1, as in Triton.
                tuple(first.dims) if first else tuple(max(size, 1) for size in dims),
                first.data_file if first else "",
                f"sequence_batching.state[{index}]",
            )
        )
    return states


def _datatype(number: int) -> str:
    known = pb.DataType.DESCRIPTOR.values_by_number.get(number)
    kind = None if known is None else BY_CONFIG_NAME.get(known.name)
    return "" if kind is None else kind.name


def _policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        policy.max_queue_size,
        policy.default_timeout_microseconds * 1000,
        policy.timeout_action == pb.ModelQueuePolicy.DELAY,
        policy.allow_timeout_override,
    )


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """A model in an ensemble.

    version: 0 or -1 for the latest that is loaded.
    inputs, outputs: the ensemble's name of a tensor by the model's.  extras: beyond Triton.
    """

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    extras: StepExtras

    @property
    def models(self) -> tuple[str, ...]:
        """Its model and those that stand in for it."""
        return (self.model, *(name for name in self.extras.fallback if name is not None))


def ensemble_steps(
    message: pb.ModelConfig, extras: Mapping[str, StepExtras]
) -> tuple[EnsembleStep, ...]:
    """The steps of an ensemble, in order; none for another model.  extras: by the steps' paths."""
    steps = message.ensemble_scheduling.step
    return tuple(
        EnsembleStep(
            step.model_name,
            step.model_version,
            dict(step.input_map),
            dict(step.output_map),
            extras.get(path, StepExtras()),
        )
        for step, path in zip(steps, step_paths(len(steps)), strict=True)
    )

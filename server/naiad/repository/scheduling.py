"""What a configuration says of scheduling, as plain values: times in nanoseconds, 0 for none.

Knows the messages of the configuration, and nothing of how anything is scheduled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from naiad_backends.errors import invalid
from naiad_proto import model_config_pb2 as pb

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


def _policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        policy.max_queue_size,
        policy.default_timeout_microseconds * 1000,
        policy.timeout_action == pb.ModelQueuePolicy.DELAY,
        policy.allow_timeout_override,
    )

"""The one table of configuration fields that this server reads but does not act on yet.

Refused: the model could not work without them. Ignored: it works, only less well or less visibly.
"""

from collections.abc import Iterator, Mapping

from google.protobuf.message import Message

from naiad.repository.histograms import BUCKETS
from naiad.repository.mistakes import Mistake, item, member
from naiad_proto import model_config_pb2 as pb

_REFUSED = {
    "model_repository_agents.agents": "repository agents are not available yet",
}

_IGNORED = {
    "instance_group.host_policy": "instances run on any core",
    "instance_group.secondary_devices": "instances run on their main device only",
    "optimization.priority": "all models have the same priority",
    "optimization.cuda": "no CUDA graphs are captured",
    "optimization.eager_batching": "one batch is prepared at a time",
    "optimization.gather_kernel_buffer_threshold": "batches are gathered on the CPU",
    "sequence_batching.state.use_same_buffer_for_input_output": "each step has memory of its own,"
    " so that a step that fails leaves the state as it was",
    "sequence_batching.state.use_growable_memory": "each step has memory of its own",
    "model_operations.op_library_filename": "no operator library is loaded",
    "cc_model_filenames": "the default file runs on every GPU",
}

_IGNORED_OF_DECOUPLED = {
    "dynamic_batching.preserve_ordering": "a decoupled model responds when it likes",
}

_IGNORED_OF_DECOUPLED_HERE = {
    "dynamic_batching.preferred_batch_size": "a decoupled model runs requests one by one",
    "dynamic_batching.max_queue_delay_microseconds": "a decoupled model runs requests one by one",
}
"""The same where instances do not work in a process of their own."""


def refused(message: pb.ModelConfig) -> list[Mistake]:
    """What stands in the way of serving this model at all."""
    return list(_found(message, _REFUSED, "remove it, or serve this model elsewhere"))


def ignored(message: pb.ModelConfig) -> list[Mistake]:
    """What is accepted without effect."""
    return [
        Mistake(mistake.path, f"accepted, but has no effect yet: {mistake.message}")
        for mistake in (
            *_found(message, _IGNORED, ""),
            *_unknown_histograms(message),
            *_of_decoupled(message),
            *_library(message),
        )
    ]


def _of_decoupled(message: pb.ModelConfig) -> Iterator[Mistake]:
    if message.model_transaction_policy.decoupled:
        yield from _found(message, _IGNORED_OF_DECOUPLED, "")
        if not _in_processes(message):
            yield from _found(message, _IGNORED_OF_DECOUPLED_HERE, "")


def _library(message: pb.ModelConfig) -> Iterator[Mistake]:
    if message.runtime and not message.runtime.endswith(".py"):
        yield Mistake("runtime", "only backends written in Python have a file that is chosen")


def _in_processes(message: pb.ModelConfig) -> bool:
    kinds = message.parameters
    thread = "EXECUTION" in kinds and kinds["EXECUTION"].string_value == "thread"
    return message.backend == "python" and not thread


def _unknown_histograms(message: pb.ModelConfig) -> Iterator[Mistake]:
    for index, control in enumerate(message.model_metrics.metric_control):
        family = control.metric_identifier.family
        if family not in BUCKETS:
            path = member(item("model_metrics.metric_control", index), "metric_identifier.family")
            yield Mistake(path, f"there is no histogram '{family}'")


def _found(message: pb.ModelConfig, table: Mapping[str, str], hint: str) -> Iterator[Mistake]:
    for path, text in table.items():
        for place in _places(message, path.split("."), ""):
            yield Mistake(place, text, hint)


def _places(message: Message, steps: list[str], path: str) -> Iterator[str]:
    """Paths at which the field is set to something else than its default."""
    name, rest = steps[0], steps[1:]
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    own = member(path, name)
    if rest and field.is_repeated:
        for index, element in enumerate(value):
            yield from _places(element, rest, item(own, index))
    elif rest:
        yield from _places(value, rest, own)
    elif message.HasField(name) if field.has_presence else bool(value):
        yield own

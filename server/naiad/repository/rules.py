"""What a configuration must fulfil before a model is loaded, as small rules that find mistakes.

Each rule looks at a completed ModelConfig and yields all it finds, so that a user sees everything
at once. Knows the files of the model's folder, but no lines and no backends.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from google.protobuf.message import Message

from naiad.repository import instances, scheduling, schema, warmup
from naiad.repository.completion import ENSEMBLE, MODEL_FILES, PLATFORM_BACKENDS
from naiad.repository.layout import ModelFolder, leaves
from naiad.repository.mistakes import Mistake, entry, item, member
from naiad.repository.scheduling import INITIAL_STATES
from naiad_backends.errors import NaiadError
from naiad_proto import model_config_pb2 as pb

_Tensor = pb.ModelInput | pb.ModelOutput
_Control = pb.ModelSequenceBatching.Control
_CORRELATION_TYPES = ("UINT64", "INT64", "UINT32", "INT32", "STRING")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules know beside the configuration.

    versions: those that will be loaded.  gpus: those that the backend can use, None if unknown.
    """

    folder: ModelFolder
    versions: tuple[int, ...] = ()
    gpus: tuple[int, ...] | None = None


def mistakes(config: pb.ModelConfig, facts: Facts) -> list[Mistake]:
    """Every break of a rule."""
    return [mistake for rule in _RULES for mistake in rule(config, facts)]


# -- enums


def _enums(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    yield from _unknown_numbers(config, "")


def _unknown_numbers(message: Message, path: str) -> Iterator[Mistake]:
    """Enum values that are given as numbers which the enum does not have."""
    for field, value in message.ListFields():
        own = member(path, field.name)
        values = [(own, value)]
        if schema.is_map(field):
            values = [(entry(own, key), value[key]) for key in value]
        elif field.is_repeated:
            values = [(item(own, index), element) for index, element in enumerate(value)]
        for place, element in values:
            if isinstance(element, Message):
                yield from _unknown_numbers(element, place)
            elif field.enum_type is not None and element not in field.enum_type.values_by_number:
                yield Mistake(place, f"{element} is no value of {field.enum_type.name}")


# -- names and files


def _name(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    if not config.name:
        yield Mistake("name", "is empty", f'write "{facts.folder.name}" or leave it out')
    elif config.name != facts.folder.name:
        yield Mistake(
            "name",
            f"'{config.name}' differs from the name of the model's folder, '{facts.folder.name}'",
            "make them equal or leave the field out",
        )


def _backend(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    if not config.backend and not config.platform:
        known = ", ".join(row.name for row in MODEL_FILES)
        yield Mistake(
            "backend",
            "is not given and cannot be told from the model's files",
            f"name the backend, or call the model's file one of {known}",
        )
    elif not config.backend and config.platform not in (*PLATFORM_BACKENDS, ENSEMBLE):
        known = ", ".join((*PLATFORM_BACKENDS, ENSEMBLE))
        yield Mistake(
            "platform", f"'{config.platform}' is unknown", f"name a backend or use one of {known}"
        )
    wanted = PLATFORM_BACKENDS.get(config.platform)
    if config.backend and wanted not in (None, config.backend):
        yield Mistake(
            "platform",
            f"'{config.platform}' belongs to backend '{wanted}', not '{config.backend}'",
            "remove one of the two",
        )


def _files(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    named = [("default_model_filename", config.default_model_filename)]
    named += [(entry("cc_model_filenames", k), v) for k, v in config.cc_model_filenames.items()]
    for path, filename in named:
        if leaves(filename):
            yield Mistake(path, f"'{filename}' leaves the version folder", "name a file in it")
        elif filename:
            yield from _missing(path, filename, facts)
    if leaves(config.runtime):
        yield Mistake(
            "runtime", f"'{config.runtime}' leaves the backend's folder", "name a file in it"
        )


def _missing(path: str, filename: str, facts: Facts) -> Iterator[Mistake]:
    for version in facts.versions:
        if not (facts.folder.version_path(version) / filename).exists():
            yield Mistake(
                path,
                f"version {version} has no '{filename}'",
                f"put the model's file at {facts.folder.name}/{version}/{filename}",
            )


# -- tensors


def _batch_size(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    if config.max_batch_size < 0:
        yield Mistake(
            "max_batch_size",
            f"{config.max_batch_size} is negative",
            "use 0 for a model without a batch dimension",
        )


def _tensors(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    both: dict[str, list[_Tensor]] = {"input": [*config.input], "output": [*config.output]}
    for kind, tensors in both.items():
        names = Counter(tensor.name for tensor in tensors)
        for index, tensor in enumerate(tensors):
            path = item(kind, index)
            if tensor.name and names[tensor.name] > 1:
                yield Mistake(f"{path}.name", f"'{tensor.name}' is used twice", "rename one")
            yield from _tensor(tensor, path)
            yield from _for_tensorrt(config, tensor, path)
    for index, model_input in enumerate(config.input):
        yield from _format(model_input, item("input", index))
    for index, output in enumerate(config.output):
        yield from _labels(output, item("output", index), facts)


def _tensor(tensor: _Tensor, path: str) -> Iterator[Mistake]:
    if not tensor.name:
        yield Mistake(f"{path}.name", "is missing")
    if tensor.data_type == pb.TYPE_INVALID:
        yield Mistake(f"{path}.data_type", "is missing", "use one such as TYPE_FP32")
    if not tensor.dims:
        yield Mistake(
            f"{path}.dims",
            "is empty",
            "give at least one dimension; for a scalar write dims: [ 1 ] reshape { shape: [ ] }",
        )
    yield from _dims(tensor.dims, f"{path}.dims")
    if tensor.HasField("reshape"):
        shape_path = f"{path}.reshape.shape"
        broken = list(_dims(tensor.reshape.shape, shape_path))
        yield from broken or _reshape(tensor.dims, tensor.reshape.shape, shape_path)


def _dims(dims: Sequence[int], path: str) -> Iterator[Mistake]:
    for index, size in enumerate(dims):
        if size == 0 or size < -1:
            yield Mistake(
                item(path, index), f"{size} is no size", "use a size of 1 or more, or -1 for any"
            )


def _reshape(dims: Sequence[int], shape: Sequence[int], path: str) -> Iterator[Mistake]:
    """Parts between the -1 of both shapes must hold equally many elements; [] holds one."""
    left, right = _fixed_parts(dims), _fixed_parts(shape)
    if len(left) != len(right):
        counts = f"{len(right) - 1} dimensions of -1 where dims has {len(left) - 1}"
        yield Mistake(path, f"has {counts}", "keep every -1 of dims, in the same order")
    elif left != right:
        yield Mistake(
            path,
            f"{list(shape)} does not hold as many elements as dims {list(dims)}",
            "make the products of the fixed sizes equal, between one -1 and the next",
        )


def _fixed_parts(shape: Sequence[int]) -> list[int]:
    parts = [1]
    for size in shape:
        if size == -1:
            parts.append(1)
        else:
            parts[-1] *= size
    return parts


def _format(tensor: pb.ModelInput, path: str) -> Iterator[Mistake]:
    if tensor.format != pb.ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
        yield Mistake(f"{path}.format", f"needs 3 dims, not {len(tensor.dims)}")


def _for_tensorrt(config: pb.ModelConfig, tensor: _Tensor, path: str) -> Iterator[Mistake]:
    if tensor.is_non_linear_format_io and len(tensor.dims) != 3:
        yield Mistake(f"{path}.is_non_linear_format_io", f"needs 3 dims, not {len(tensor.dims)}")
    if _is_tensorrt(config):
        return
    for name in ("is_shape_tensor", "is_non_linear_format_io"):
        if getattr(tensor, name):
            yield Mistake(f"{path}.{name}", "is for TensorRT models only", "remove it")


def _is_tensorrt(config: pb.ModelConfig) -> bool:
    return config.backend == "tensorrt" or config.platform == "tensorrt_plan"


def _labels(output: pb.ModelOutput, path: str, facts: Facts) -> Iterator[Mistake]:
    name = output.label_filename
    if leaves(name):
        yield Mistake(
            f"{path}.label_filename", f"'{name}' leaves the model's folder", "name a file in it"
        )
    elif name and not (facts.folder.path / name).is_file():
        yield Mistake(
            f"{path}.label_filename",
            f"there is no file '{name}'",
            f"put it at {facts.folder.name}/{name}",
        )


# -- ragged batches


def _batch_inputs(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    inputs = {tensor.name for tensor in config.input}
    targets = Counter(name for made in config.batch_input for name in made.target_name)
    for index, made in enumerate(config.batch_input):
        path = item("batch_input", index)
        yield from _one_source(made.source_input, f"{path}.source_input", inputs)
        if made.data_type not in (pb.TYPE_INT32, pb.TYPE_FP32):
            yield Mistake(f"{path}.data_type", "must be TYPE_INT32 or TYPE_FP32")
        if not made.target_name:
            yield Mistake(f"{path}.target_name", "is empty", "name the tensor that is made")
        for place, name in enumerate(made.target_name):
            own = item(f"{path}.target_name", place)
            if name in inputs:
                yield Mistake(own, f"'{name}' is also an input", "remove it from 'input'")
            elif targets[name] > 1:
                yield Mistake(own, f"'{name}' is made twice", "rename one")


def _batch_outputs(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    targets = Counter(name for split in config.batch_output for name in split.target_name)
    for index, split in enumerate(config.batch_output):
        path = item("batch_output", index)
        yield from _one_source(split.source_input, f"{path}.source_input", inputs)
        for place, name in enumerate(split.target_name):
            own = item(f"{path}.target_name", place)
            if name not in outputs:
                yield Mistake(own, f"'{name}' is no output", _choices("outputs", outputs))
            elif targets[name] > 1:
                yield Mistake(own, f"'{name}' is listed twice", "remove one")


def _one_source(sources: Sequence[str], path: str, inputs: Iterable[str]) -> Iterator[Mistake]:
    if len(sources) != 1:
        yield Mistake(path, f"must name exactly one input, not {len(sources)}")
    elif sources[0] not in inputs:
        yield Mistake(path, f"'{sources[0]}' is no input", _choices("inputs", inputs))


def _choices(what: str, names: Iterable[str]) -> str:
    return f"the {what} are {', '.join(sorted(names)) or 'none'}"


# -- schedulers


def _dynamic_batching(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    if not config.HasField("dynamic_batching"):
        return
    batching, path = config.dynamic_batching, "dynamic_batching"
    yield from _preferred(batching.preferred_batch_size, path, config.max_batch_size)
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        yield Mistake(
            f"{path}.default_priority_level",
            f"{batching.default_priority_level} is not in 1 to {levels}",
            "name one of the priority_levels",
        )
    for level in batching.priority_queue_policy if levels else ():
        if not 1 <= level <= levels:
            yield Mistake(
                entry(f"{path}.priority_queue_policy", level), f"{level} is not in 1 to {levels}"
            )
    if batching.preserve_ordering:
        yield from _ordering(batching, path)


def _own_parameters(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    """The parameters that are no backend's, but Naiad's own."""
    path = entry("parameters", scheduling.AUTO_DELAY)
    if scheduling.AUTO_DELAY in config.parameters:
        if not scheduling.chooses_delay(config):
            yield Mistake(path, "is neither left out nor 'auto'", "write auto")
        elif not config.HasField("dynamic_batching"):
            yield Mistake(path, "has nothing to act on", "add dynamic_batching { }")
        elif config.dynamic_batching.max_queue_delay_microseconds:
            yield Mistake(path, "cannot stand beside a delay", f"remove {scheduling.DELAY_FIELD}")
    try:
        scheduling.padding_buckets(config)
    except NaiadError as error:
        yield Mistake(error.field, error.message, error.hint)


def _ordering(batching: pb.ModelDynamicBatching, path: str) -> Iterator[Mistake]:
    if batching.priority_levels > 1:
        yield Mistake(
            f"{path}.preserve_ordering", "cannot hold with several priority_levels", "use one level"
        )
    policies = {f"{path}.default_queue_policy": batching.default_queue_policy} | {
        entry(f"{path}.priority_queue_policy", level): batching.priority_queue_policy[level]
        for level in batching.priority_queue_policy
    }
    for own, policy in policies.items():
        delays = policy.timeout_action == pb.ModelQueuePolicy.DELAY
        if delays and policy.default_timeout_microseconds:
            yield Mistake(
                f"{own}.timeout_action",
                "DELAY with a timeout breaks preserve_ordering",
                "use REJECT, or drop preserve_ordering",
            )


def _preferred(sizes: Sequence[int], path: str, largest: int) -> Iterator[Mistake]:
    for index, size in enumerate(sizes):
        if not 0 < size <= largest:
            yield Mistake(
                item(f"{path}.preferred_batch_size", index),
                f"{size} is not in 1 to max_batch_size, which is {largest}",
            )


def _sequence_batching(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    if not config.HasField("sequence_batching"):
        return
    batching, path = config.sequence_batching, "sequence_batching"
    yield from _controls(batching, path)
    if not 0 <= batching.direct.minimum_slot_utilization <= 1:
        yield Mistake(f"{path}.direct.minimum_slot_utilization", "is not in 0 to 1")
    oldest = batching.oldest.preferred_batch_size
    yield from _preferred(oldest, f"{path}.oldest", config.max_batch_size)
    if batching.oldest.max_candidate_sequences < 0:
        yield Mistake(f"{path}.oldest.max_candidate_sequences", "is negative")
    yield from _names_of_server(config, path)
    for index, state in enumerate(batching.state):
        yield from _state(state, item(f"{path}.state", index), facts)


def _names_of_server(config: pb.ModelConfig, path: str) -> Iterator[Mistake]:
    """Names of the tensors that clients do not see: each once, and none of them an input."""
    batching = config.sequence_batching
    places = [
        (f"{item(f'{path}.control_input', index)}.name", control_input.name)
        for index, control_input in enumerate(batching.control_input)
    ]
    states = [(item(f"{path}.state", index), state) for index, state in enumerate(batching.state)]
    places += [(f"{own}.input_name", state.input_name) for own, state in states]
    outputs = [(f"{own}.output_name", state.output_name) for own, state in states]
    inputs = {tensor.name for tensor in config.input}
    for place, name in (*places, *outputs):
        if not name:
            yield Mistake(place, "is missing")
    for place, name in places:
        if name in inputs:
            yield Mistake(
                place, f"'{name}' is also an input", "remove it from 'input': the server adds it"
            )
    for group in (places, outputs):
        counts = Counter(name for _, name in group if name)
        for place, name in group:
            if counts[name] > 1:
                yield Mistake(place, f"'{name}' is used twice", "rename one")
    told = {tensor.name: tensor.data_type for tensor in config.output}
    for own, state in states:
        if told.get(state.output_name, state.data_type) != state.data_type:
            yield Mistake(f"{own}.data_type", f"differs from that of output '{state.output_name}'")


def _state(state: pb.ModelSequenceBatching.State, path: str, facts: Facts) -> Iterator[Mistake]:
    if state.data_type == pb.TYPE_INVALID:
        yield Mistake(f"{path}.data_type", "is missing", "use one such as TYPE_FP32")
    yield from _dims(state.dims, f"{path}.dims")
    if len(state.initial_state) > 1:
        number = len(state.initial_state)
        yield Mistake(f"{path}.initial_state", f"has {number} entries", "keep one")
    for index, first in enumerate(state.initial_state[:1]):
        own = item(f"{path}.initial_state", index)
        if first.data_type != state.data_type:
            yield Mistake(f"{own}.data_type", "differs from that of the state")
        fits = len(first.dims) == len(state.dims) and all(
            size > 0 and dim in (-1, size) for size, dim in zip(first.dims, state.dims, strict=True)
        )
        if not fits:
            yield Mistake(
                f"{own}.dims",
                f"{list(first.dims)} does not fit the state's dims {list(state.dims)}",
                "give a size of 1 or more for each -1",
            )
        yield from _initial_data(first, own, facts)


def _initial_data(
    first: pb.ModelSequenceBatching.InitialState, path: str, facts: Facts
) -> Iterator[Mistake]:
    name = first.data_file
    if first.WhichOneof("state_data") is None:
        yield Mistake(path, "has no data", "write zero_data: true, or data_file with a file's name")
    elif first.HasField("data_file") and (not name or leaves(name)):
        yield Mistake(
            f"{path}.data_file", f"'{name}' leaves the folder {INITIAL_STATES}", "name a file in it"
        )
    elif name and not (facts.folder.path / INITIAL_STATES / name).is_file():
        yield Mistake(
            f"{path}.data_file",
            f"there is no file '{name}'",
            f"put it at {facts.folder.name}/{INITIAL_STATES}/{name}",
        )


def _controls(batching: pb.ModelSequenceBatching, path: str) -> Iterator[Mistake]:
    kinds = Counter(
        c.kind for control_input in batching.control_input for c in control_input.control
    )
    for index, control_input in enumerate(batching.control_input):
        own = item(f"{path}.control_input", index)
        if len(control_input.control) != 1:
            number = len(control_input.control)
            yield Mistake(f"{own}.control", f"needs exactly one entry, not {number}")
        for place, control in enumerate(control_input.control):
            control_path = item(f"{own}.control", place)
            if kinds[control.kind] > 1:
                yield Mistake(f"{control_path}.kind", "this kind is given twice", "keep one")
            yield from _control(control, control_path)


def _control(control: _Control, path: str) -> Iterator[Mistake]:
    pairs = {
        name: len(getattr(control, name))
        for name in ("int32_false_true", "fp32_false_true", "bool_false_true")
        if getattr(control, name)
    }
    if control.kind == _Control.CONTROL_SEQUENCE_CORRID:
        for name in pairs:
            yield Mistake(f"{path}.{name}", "has no meaning for CONTROL_SEQUENCE_CORRID")
        names = [f"TYPE_{name}" for name in _CORRELATION_TYPES]
        if control.data_type not in [pb.DataType.Value(name) for name in names]:
            yield Mistake(f"{path}.data_type", f"must be one of {', '.join(names)}")
    elif len(pairs) != 1:
        yield Mistake(
            path,
            "needs exactly one of int32_false_true, fp32_false_true and bool_false_true",
            "for example int32_false_true: [ 0, 1 ]",
        )
    elif (length := next(iter(pairs.values()))) != 2:
        name = next(iter(pairs))
        yield Mistake(f"{path}.{name}", f"needs two values, for false and true, not {length}")


def _response_cache(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    if not config.response_cache.enable:
        return
    if config.HasField("sequence_batching"):
        yield Mistake("response_cache.enable", "cannot be used with sequence_batching", "remove it")
    if config.model_transaction_policy.decoupled:
        yield Mistake("response_cache.enable", "cannot be used by a decoupled model", "remove it")


def _ensemble(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    if not config.HasField("ensemble_scheduling"):
        if config.platform == ENSEMBLE:
            yield Mistake("ensemble_scheduling", "is missing", "list the steps of the ensemble")
        return
    if config.platform != ENSEMBLE:
        yield Mistake("platform", f"must be '{ENSEMBLE}' for a model with ensemble_scheduling")
    if not config.ensemble_scheduling.step:
        yield Mistake("ensemble_scheduling.step", "is empty", "add at least one step")
    for name in ("backend", "instance_group", "model_warmup"):
        if getattr(config, name):
            yield Mistake(name, "has no meaning for an ensemble", "remove it")
    if config.HasField("optimization"):
        yield Mistake("optimization", "has no meaning for an ensemble", "remove it")


# -- instances and metrics


def _instance_groups(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    groups = config.instance_group
    for index, group in enumerate(groups):
        path = item("instance_group", index)
        yield from _devices(group, path, facts.gpus)
        for place, profile in enumerate(group.profile):
            own = item(f"{path}.profile", place)
            if not _is_tensorrt(config):
                yield Mistake(own, "is for TensorRT models only", "remove it")
            elif not (profile.isascii() and profile.isdigit()):
                yield Mistake(own, f"'{profile}' is no number of a profile", "use 0, 1, 2, …")
    yield from instances.mistakes(config)
    if groups and all(group.passive for group in groups):
        yield Mistake("instance_group", "has passive groups only", "add one that is not passive")


def _devices(
    group: pb.ModelInstanceGroup, path: str, gpus: tuple[int, ...] | None
) -> Iterator[Mistake]:
    kinds = pb.ModelInstanceGroup
    if group.kind in (kinds.KIND_CPU, kinds.KIND_MODEL) and group.gpus:
        name = kinds.Kind.Name(group.kind)
        yield Mistake(f"{path}.gpus", f"has no meaning for {name}", "remove it")
    if group.kind != kinds.KIND_GPU or gpus is None:
        return
    if not gpus:
        yield Mistake(
            f"{path}.kind",
            "KIND_GPU needs a GPU, and the backend can use none here",
            "use KIND_CPU, or KIND_AUTO for a GPU where there is one",
        )
        return
    for place, gpu in enumerate(group.gpus):
        if gpu not in gpus:
            known = ", ".join(map(str, gpus))
            yield Mistake(
                item(f"{path}.gpus", place), f"there is no GPU {gpu}", f"the GPUs here are {known}"
            )


def _warmups(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    yield from warmup.mistakes(config, facts.folder.path)


def _metrics(config: pb.ModelConfig, facts: Facts) -> Iterator[Mistake]:
    for index, control in enumerate(config.model_metrics.metric_control):
        path = item("model_metrics.metric_control", index)
        if not control.metric_identifier.family:
            yield Mistake(member(path, "metric_identifier.family"), "is missing")
        buckets = control.histogram_options.buckets
        place = member(path, "histogram_options.buckets")
        if not buckets or any(math.isnan(bound) for bound in buckets):
            yield Mistake(place, "needs at least one bound")
        elif any(low >= high for low, high in pairwise(buckets)):
            yield Mistake(place, "is not ascending", "give every bound once, the lowest first")


_Rule = Callable[[pb.ModelConfig, Facts], Iterator[Mistake]]

_RULES: tuple[_Rule, ...] = (
    _enums,
    _name,
    _backend,
    _files,
    _batch_size,
    _tensors,
    _batch_inputs,
    _batch_outputs,
    _dynamic_batching,
    _own_parameters,
    _sequence_batching,
    _response_cache,
    _ensemble,
    _instance_groups,
    _warmups,
    _metrics,
)

"""ModelConfig: one model's configuration, from its file to the specification a backend gets.

Frozen: each stage of completion gives a new one. It remembers where it was read, so that every
mistake names its line. The parsing, the filling in and the rules lie in their own files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from naiad.repository import (
    completion,
    instances,
    jsonconf,
    pbtxt,
    rules,
    scheduling,
    unsupported,
    warmup,
    yamlconf,
)
from naiad.repository.layout import ModelFolder
from naiad.repository.mistakes import ConfigError, Mistake, line_of
from naiad.repository.pipelines import StepExtras
from naiad_backends.api import (
    Accelerator,
    BatchInput,
    BatchInputKind,
    BatchOutput,
    Completion,
    ModelSpec,
    Tensor,
    TensorSpec,
)
from naiad_backends.datatypes import BY_CONFIG_NAME, DATATYPES
from naiad_backends.errors import Code, NaiadError, invalid
from naiad_proto import model_config_pb2 as pb

TEXT_FILE = "config.pbtxt"
YAML_FILE = "config.yaml"

_BATCH_INPUT_KINDS = {pb.BatchInput.Kind.Value(kind.value): kind for kind in BatchInputKind}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration was read, to name the places of mistakes.

    file: relative to the model's folder; empty if there was none.  lines: field path -> line.
    extras: of an ensemble's steps, by their paths; see `naiad.repository.pipelines`.
    """

    folder: ModelFolder
    file: str = ""
    lines: dict[str, int] = field(default_factory=dict)
    extras: dict[str, StepExtras] = field(default_factory=dict)

    def placed(self, mistakes: Sequence[Mistake]) -> list[Mistake]:
        """The mistakes with their lines, in the order of the file."""
        found = [replace(m, line=m.line or line_of(m.path, self.lines)) for m in mistakes]
        return sorted(found, key=lambda mistake: mistake.line)

    def error(self, mistakes: Sequence[Mistake], code: Code = Code.INVALID_ARG) -> ConfigError:
        """The error for these mistakes, of which there must be at least one."""
        return ConfigError(self.file or "configuration", self.placed(mistakes), code)


@dataclass(frozen=True, slots=True, eq=False)
class ModelConfig:
    """A configuration in some stage of completion. Made by `read` or `from_json`."""

    source: Source
    """Where it comes from."""

    _message: pb.ModelConfig
    _given: pb.ModelConfig
    _gpus: tuple[int, ...] | None = None

    @classmethod
    def read(cls, folder: ModelFolder, config_name: str = "") -> "ModelConfig":
        """What the model's folder says: configs/<config_name>.pbtxt, config.pbtxt, config.yaml, or
        an empty configuration if none of them exists.

        Raises ConfigError (INVALID_ARG) with every mistake of form and its line.
        """
        file = config_file(folder, config_name)
        if not file:
            return cls._of(Source(folder), pb.ModelConfig())
        text = _text(folder.path / file, file)
        if file == YAML_FILE:
            message, lines, extras = yamlconf.parse(text, file)
            return cls._of(Source(folder, file, lines, extras), message)
        message, lines = pbtxt.parse(text, file)
        return cls._of(Source(folder, file, lines), message)

    @classmethod
    def from_json(cls, text: str, folder: ModelFolder) -> "ModelConfig":
        """What a load request says instead of the file: protobuf JSON. Raises ConfigError."""
        return cls._of(Source(folder, jsonconf.FILE), jsonconf.parse(text))

    @classmethod
    def _of(cls, source: Source, message: pb.ModelConfig) -> "ModelConfig":
        given = _copy(message)
        message.name = message.name or source.folder.name
        return cls(source, message, given)

    # -- what it says

    @property
    def name(self) -> str:
        return self._message.name

    @property
    def backend(self) -> str:
        """Name of the backend; empty before stage 1, and for ensembles."""
        return self._message.backend

    @property
    def platform(self) -> str:
        """Older name of the backend; may be empty."""
        return self._message.platform

    @property
    def max_batch_size(self) -> int:
        """Largest batch; 0 if tensors have no batch dimension."""
        return self._message.max_batch_size

    @property
    def metric_tags(self) -> dict[str, str]:
        """Names and values that the model's metrics carry."""
        return dict(self._message.metric_tags)

    @property
    def histogram_buckets(self) -> dict[str, Sequence[float]]:
        """Upper bounds that metrics have to use, by the family's name."""
        return {
            control.metric_identifier.family: list(control.histogram_options.buckets)
            for control in self._message.model_metrics.metric_control
        }

    def dynamic_batching(self) -> scheduling.DynamicBatching | None:
        """How requests are put together; None if each runs alone."""
        return scheduling.dynamic_batching(self._message)

    def instances(self) -> tuple[instances.InstancePlan, ...]:
        """The instances that may get work."""
        return instances.instances(self._message)

    def padding_buckets(self) -> tuple[int, ...]:
        """Sizes that inputs of variable size are padded to, ascending; none for no padding.

        Raises INVALID_ARG for what is no list of sizes.
        """
        return scheduling.padding_buckets(self._message)

    def sequence_batching(self) -> scheduling.SequenceBatching | None:
        """How sequences run; None if requests do not belong together."""
        return scheduling.sequence_batching(self._message)

    @property
    def caches_responses(self) -> bool:
        """Whether equal requests may be given the same answer."""
        return self._message.response_cache.enable

    @property
    def has_sequence_batching(self) -> bool:
        return self._message.HasField("sequence_batching")

    def ensemble_steps(self) -> tuple[scheduling.EnsembleStep, ...]:
        """The steps of an ensemble, in the order of the file."""
        return scheduling.ensemble_steps(self._message, self.source.extras)

    @property
    def max_inflight_requests(self) -> int:
        """Unfinished requests that a step of an ensemble may have; 0 for any number."""
        return self._message.ensemble_scheduling.max_inflight_requests

    @property
    def is_ensemble(self) -> bool:
        return self._message.HasField("ensemble_scheduling") or self.platform == completion.ENSEMBLE

    def versions(self, available: Sequence[int]) -> list[int]:
        """The versions to serve by the version policy, ascending; at least one.

        available: the version folders. Raises INVALID_ARG if the policy leaves none of them.
        """
        policy = self._message.version_policy
        chosen = sorted(available)
        if policy.HasField("specific"):
            chosen = [version for version in chosen if version in policy.specific.versions]
        elif not policy.HasField("all"):
            chosen = chosen[-(policy.latest.num_versions or 1) :]
        if not chosen:
            raise self._no_version(available)
        return chosen

    def missing_versions(self, available: Sequence[int]) -> list[int]:
        """Versions that the policy names and that are not there, ascending."""
        return sorted(set(self._message.version_policy.specific.versions) - set(available))

    def _no_version(self, available: Sequence[int]) -> NaiadError:
        name = self.source.folder.name
        if not available:
            return invalid(
                f"model '{name}' has no version",
                hint=f"put its files into a folder with a number, such as {name}/1",
            )
        listed = ", ".join(map(str, sorted(available)))
        hint = f"its versions are {listed}"
        return self.source.error([Mistake("version_policy", "leaves no version to serve", hint)])

    def equals_but_instances(self, other: "ModelConfig") -> bool:
        """Whether two configurations differ at most in instances and in which versions serve."""
        ours, theirs = _copy(self._message), _copy(other._message)
        for message in (ours, theirs):
            message.ClearField("instance_group")
            message.ClearField("version_policy")
        return ours == theirs

    # -- completion

    def with_backend(self, folder: ModelFolder, version: int) -> "ModelConfig":
        """Stage 1: backend, platform and file name, from each other or from the version's files.

        Raises INVALID_ARG if nothing tells the backend.
        """
        message = _copy(self._message)
        completion.fill_backend(message, folder.version_path(version))
        completed = replace(self, _message=message)
        if not message.backend and message.platform != completion.ENSEMBLE:
            wrong = [m for m in completed.mistakes() if m.path in ("backend", "platform")]
            raise self.source.error(wrong)
        return completed

    def with_completion(self, found: Completion) -> "ModelConfig":
        """Stage 2: inputs, outputs and batch size as the model's file tells them.

        What the configuration gives stays; one that gives all its tensors stays as it is, unless
        the model's author has written what to complete.
        """
        message = _copy(self._message)
        completion.fill_completion(message, found)
        return replace(self, _message=message)

    def with_defaults(self, gpus: Sequence[int], default_cpu_instances: int) -> "ModelConfig":
        """Triton's defaults for the version policy, batch sizes, memory and instance groups.

        gpus: numbers of those that the backend can use.
        """
        message = _copy(self._message)
        completion.fill_defaults(message, gpus, default_cpu_instances)
        return replace(self, _message=message, _gpus=tuple(gpus))

    # -- judgement

    def mistakes(self) -> list[Mistake]:
        """Every break of a rule, in the order of the file."""
        folder = self.source.folder
        try:
            versions = tuple(self.versions(folder.versions))
        except NaiadError:
            # `versions` reports that itself; here it only means that there are no files to check.
            versions = ()
        facts = rules.Facts(folder, versions, self._gpus)
        return self.source.placed(rules.mistakes(self._message, facts))

    def validate(self) -> None:
        """Raises ConfigError (INVALID_ARG) with every mistake and its line, if there is any."""
        if mistakes := self.mistakes():
            raise self.source.error(mistakes)

    def placed(self, error: NaiadError) -> NaiadError:
        """A backend's error about a field of this configuration, with the field's line."""
        if not error.field or not self.source.file:
            return error
        mistake = Mistake(error.field, error.message, error.hint)
        return self.source.error([mistake], error.code)

    def refused(self) -> NaiadError | None:
        """UNSUPPORTED if the model needs something that this server does not do yet."""
        found = unsupported.refused(self._message)
        return self.source.error(found, Code.UNSUPPORTED) if found else None

    def ignored(self) -> list[str]:
        """What the user wrote and this server accepts without acting on it yet."""
        return [str(mistake) for mistake in self.ignored_mistakes()]

    def ignored_mistakes(self) -> list[Mistake]:
        """The same with paths and lines."""
        return self.source.placed(unsupported.ignored(self._given))

    # -- forms

    def spec(self, version: int, folder: ModelFolder) -> ModelSpec:
        """One version as its backend sees it. A data type that is not known yet is empty."""
        message = self._message
        accelerators = message.optimization.execution_accelerators
        server_inputs, server_outputs = _server_tensors(message)
        return ModelSpec(
            name=message.name,
            version=version,
            path=folder.version_path(version),
            filename=message.default_model_filename,
            max_batch_size=message.max_batch_size,
            inputs=tuple(_tensor(t, t.optional, t.allow_ragged_batch) for t in message.input),
            outputs=tuple(_tensor(t) for t in message.output),
            parameters={key: value.string_value for key, value in message.parameters.items()},
            graph_level=message.optimization.graph.level,
            cpu_accelerators=_accelerators(accelerators.cpu_execution_accelerator),
            gpu_accelerators=_accelerators(accelerators.gpu_execution_accelerator),
            placements=tuple(plan.placement for plan in self.instances()),
            decoupled=message.model_transaction_policy.decoupled,
            batch_inputs=tuple(_batch_input(made) for made in message.batch_input),
            batch_outputs=tuple(
                BatchOutput(tuple(split.target_name), "".join(split.source_input[:1]))
                for split in message.batch_output
            ),
            server_inputs=server_inputs,
            server_outputs=server_outputs,
            runtime=message.runtime,
            config=json.dumps(self.to_json()),
        )

    def labels(self, folder: Path) -> dict[str, list[bytes]]:
        """The labels of the outputs that name a file of them: by index, one a line.

        folder: the model's. Raises INVALID_ARG for a file that cannot be read.
        """
        labels: dict[str, list[bytes]] = {}
        for index, output in enumerate(self._message.output):
            if output.label_filename:
                try:
                    text = (folder / output.label_filename).read_bytes()
                except OSError as error:
                    raise invalid(
                        f"'{output.label_filename}' cannot be read: {error.strerror}",
                        field=f"output[{index}].label_filename",
                    ) from error
                labels[output.name] = [line.rstrip(b"\r") for line in text.split(b"\n")]
        return labels

    def warmups(self, folder: Path) -> tuple[warmup.Warmup, ...]:
        """How each instance is warmed up, of a configuration without mistakes.

        folder: the model's.
        """
        return warmup.warmups(self._message, folder)

    def initial_states(self, folder: Path) -> dict[str, Tensor]:
        """What the states of a sequence begin with, by input, without a batch dimension.

        folder: the model's. Raises INVALID_ARG for a file that cannot be read or does not fit.
        """
        batching = self.sequence_batching()
        return {
            state.input.name: _initial_state(state, folder)
            for state in (batching.states if batching else ())
        }

    def message(self) -> pb.ModelConfig:
        """A copy as the protobuf message."""
        return _copy(self._message)

    def to_json(self) -> dict[str, Any]:
        """The form in which clients read it over HTTP."""
        return jsonconf.to_json(self._message)

    def to_text(self) -> str:
        """config.pbtxt that reads back as the same configuration."""
        return text_format.MessageToString(self._message, as_utf8=True, use_index_order=True)


def config_file(folder: ModelFolder, config_name: str = "") -> str:
    """The configuration file to read, relative to the model's folder; empty if there is none.

    Raises ConfigError if both formats are there.
    """
    named = f"configs/{config_name}.pbtxt"
    if config_name and (folder.path / named).is_file():
        return named
    files = [file for file in (TEXT_FILE, YAML_FILE) if (folder.path / file).is_file()]
    if len(files) > 1:
        raise ConfigError(
            YAML_FILE, [Mistake("", f"{TEXT_FILE} is there as well", "keep one of the two")]
        )
    return files[0] if files else ""


def _text(path: Path, file: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise invalid(f"cannot be read: {error.strerror}", field=file) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            file, [Mistake("", "is not UTF-8 text", "save it as UTF-8", line)]
        ) from error


def _copy(message: pb.ModelConfig) -> pb.ModelConfig:
    copy = pb.ModelConfig()
    copy.CopyFrom(message)
    return copy


def _tensor(
    tensor: pb.ModelInput | pb.ModelOutput, optional: bool = False, ragged: bool = False
) -> TensorSpec:
    known = pb.DataType.DESCRIPTOR.values_by_number.get(tensor.data_type)
    kind = None if known is None else BY_CONFIG_NAME.get(known.name)
    return TensorSpec(
        name=tensor.name,
        datatype="" if kind is None else kind.name,
        dims=tuple(tensor.dims),
        reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        optional=optional,
        ragged=ragged,
    )


def _batch_input(made: pb.BatchInput) -> BatchInput:
    return BatchInput(
        _BATCH_INPUT_KINDS.get(made.kind, BatchInputKind.ELEMENT_COUNT),
        tuple(made.target_name),
        "FP32" if made.data_type == pb.TYPE_FP32 else "INT32",
        "".join(made.source_input[:1]),
    )


def _server_tensors(
    message: pb.ModelConfig,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs that the server adds to requests, and outputs that it keeps for itself."""
    batching = scheduling.sequence_batching(message)
    if batching is None:
        return (), ()
    told = {tensor.name for tensor in message.output}
    return (
        tuple(control.tensor for control in batching.controls)
        + tuple(state.input for state in batching.states),
        tuple(state.output for state in batching.states if state.output.name not in told),
    )


def _initial_state(state: scheduling.State, folder: Path) -> Tensor:
    name, datatype, dims = state.input.name, state.input.datatype, state.initial_dims
    kind = DATATYPES[datatype]
    if not state.initial_file:
        zeros = np.zeros(dims, kind.numpy) if kind.size else np.full(dims, b"", object)
        return Tensor.from_numpy(name, zeros, datatype)
    try:
        content = (folder / scheduling.INITIAL_STATES / state.initial_file).read_bytes()
        return Tensor.from_wire(name, datatype, dims, content)
    except OSError as error:
        reason = f"'{state.initial_file}' cannot be read: {error.strerror}"
        raise invalid(reason, field=f"{state.path}.initial_state[0].data_file") from error
    except NaiadError as error:
        raise invalid(
            f"'{state.initial_file}': {error.message}",
            field=f"{state.path}.initial_state[0].data_file",
        ) from error


def _accelerators(
    given: Sequence[pb.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator],
) -> tuple[Accelerator, ...]:
    return tuple(Accelerator(one.name, dict(one.parameters)) for one in given)

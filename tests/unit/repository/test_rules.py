"""Every rule once: what breaks it, at which path, and what does not."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from naiad.repository.layout import ModelFolder
from naiad.repository.pbtxt import parse
from naiad.repository.rules import Facts, mistakes
from naiad_proto import model_config_pb2 as pb

GOOD = """
name: "m" backend: "onnxruntime" platform: "onnxruntime_onnx" max_batch_size: 8
default_model_filename: "model.onnx"
input { name: "x" data_type: TYPE_FP32 dims: [ 2, -1, 3 ] format: FORMAT_NHWC }
input { name: "i" data_type: TYPE_INT64 dims: 1 reshape { } }
output { name: "y" data_type: TYPE_FP32 dims: [ 6, -1 ] reshape { shape: [ 2, 3, -1, 1 ] }
         label_filename: "labels.txt" }
output { name: "x" data_type: TYPE_FP32 dims: -1 }
"""
BARE = "name: 'm' backend: 'identity' "
IO = """input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 } """
TRT = "name: 'm' backend: 'tensorrt' "
DYNAMIC = BARE + "max_batch_size: 8 dynamic_batching "
AUTO = "parameters { key: 'max_queue_delay_microseconds' value { string_value: '%s' } }"
AUTO_PATH = 'parameters["max_queue_delay_microseconds"]'
BUCKETS = "parameters { key: 'padding_buckets' value { string_value: '%s' } }"
SEQUENCE = BARE + "max_batch_size: 8 sequence_batching "
WARM = BARE + IO + "model_warmup { batch_size: 1 inputs { key: 'x' value { %s } } }"
WARM_PATH = 'model_warmup[0].inputs["x"]'
STATE = SEQUENCE + "{ state { input_name: 's' output_name: 't' data_type: TYPE_FP32 dims: [2, -1] "
FIRST = "initial_state { data_type: TYPE_FP32 dims: [2, 3] zero_data: true }"
CONTROL = SEQUENCE + "{ control_input { name: 'c' control "


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    folder = tmp_path / "m"
    for version in ("1", "2"):
        (folder / version).mkdir(parents=True)
        (folder / version / "model.onnx").write_text("")
    (folder / "labels.txt").write_text("cat\n")
    (folder / "warmup").mkdir()
    (folder / "warmup" / "two").write_bytes(bytes(8))
    return Facts(ModelFolder.at(folder), (1, 2), (0, 1))


def paths(text: str, facts: Facts) -> list[str]:
    return [mistake.path for mistake in mistakes(parse(text)[0], facts)]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        BARE,
        "name: 'm' platform: 'onnxruntime_onnx'",
        TRT + "input { name: 'x' data_type: TYPE_INT32 dims: 1 is_shape_tensor: true }",
        TRT + "instance_group { profile: ['0', '12'] }",
        DYNAMIC + "{ preferred_batch_size: [ 1, 8 ] }",
        DYNAMIC + "{ priority_levels: 2 default_priority_level: 2"
        " priority_queue_policy { key: 1 value { timeout_action: DELAY } } }",
        DYNAMIC + "{ } " + AUTO % "auto",
        BARE + BUCKETS % "16, 32,64",
        DYNAMIC + "{ preserve_ordering: true priority_levels: 1 default_priority_level: 1 }",
        CONTROL + "{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } } }",
        CONTROL + "{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } } }",
        "name: 'm' platform: 'ensemble' ensemble_scheduling { step { model_name: 'a' } }",
        BARE + "instance_group { kind: KIND_GPU gpus: [0, 1] }",
        BARE + "response_cache { enable: true }",
        WARM % "data_type: TYPE_FP32 dims: 1 zero_data: false",
        WARM % "data_type: TYPE_FP32 dims: [ 3, 0 ] random_data: true",
        WARM % "data_type: TYPE_FP32 dims: [ 2 ] input_data_file: 'two'",
        BARE + IO + "model_warmup { inputs { key: 'x' value { dims: -1 } } }",
        BARE + IO + "batch_input { target_name: 'n' data_type: TYPE_FP32 source_input: 'x' }"
        " batch_output { target_name: 'y' source_input: 'x' }",
        BARE + "model_metrics { metric_control { metric_identifier { family: 'f' }"
        " histogram_options { buckets: 1 } } }",
    ],
)
def test_good_configurations(text: str, facts: Facts) -> None:
    assert mistakes(parse(text)[0], facts) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("backend: 'identity'", "name"),
        ("name: 'n' backend: 'identity'", "name"),
        ("name: 'm'", "backend"),
        ("name: 'm' platform: 'caffe'", "platform"),
        ("name: 'm' backend: 'python' platform: 'onnxruntime_onnx'", "platform"),
        (BARE + "max_batch_size: -1", "max_batch_size"),
        (BARE + "default_model_filename: 'no.onnx'", "default_model_filename"),
        (BARE + "default_model_filename: '../1/model.onnx'", "default_model_filename"),
        (BARE + "default_model_filename: '/etc/passwd'", "default_model_filename"),
        (BARE + "default_model_filename: 'C:\\\\x'", "default_model_filename"),
        (BARE + "default_model_filename: '\\\\x'", "default_model_filename"),
        (BARE + "runtime: '../other/model.py'", "runtime"),
        (BARE + "runtime: '/etc/model.py'", "runtime"),
        (
            BARE + "cc_model_filenames { key: '8.0' value: '..' }",
            'cc_model_filenames["8.0"]',
        ),
        (BARE + "input { data_type: TYPE_FP32 dims: 1 }", "input[0].name"),
        (BARE + "input { name: 'x' dims: 1 }", "input[0].data_type"),
        (BARE + "input { name: 'x' data_type: 99 dims: 1 }", "input[0].data_type"),
        (BARE + "output { name: 'x' data_type: TYPE_FP32 }", "output[0].dims"),
        (BARE + "output { name: 'x' data_type: TYPE_FP32 dims: [1, 0] }", "output[0].dims[1]"),
        (BARE + "output { name: 'x' data_type: TYPE_FP32 dims: -2 }", "output[0].dims[0]"),
        (
            BARE + "input { name: 'x' data_type: TYPE_FP32 dims: [1, 2] format: FORMAT_NCHW }",
            "input[0].format",
        ),
        (
            BARE + "input { name: 'x' data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }",
            "input[0].is_shape_tensor",
        ),
        (
            TRT + "input { name: 'x' data_type: TYPE_FP32 dims: 1 is_non_linear_format_io: true }",
            "input[0].is_non_linear_format_io",
        ),
        (
            BARE + "output { name: 'x' data_type: TYPE_FP32 dims: 1 label_filename: 'no' }",
            "output[0].label_filename",
        ),
        (
            BARE + "output { name: 'x' data_type: TYPE_FP32 dims: 1 label_filename: '../x' }",
            "output[0].label_filename",
        ),
        (BARE + IO + "model_warmup { batch_size: 1 }", "model_warmup[0].inputs"),
        (
            WARM
            % "data_type: TYPE_FP32 dims: 1 zero_data: true"
            + " model_warmup { batch_size: 2 inputs { key: 'x' value"
            " { data_type: TYPE_FP32 zero_data: true } } }",
            "model_warmup[1].batch_size",
        ),
        (WARM % "dims: 1 zero_data: true", f"{WARM_PATH}.data_type"),
        (WARM % "data_type: TYPE_INT32 dims: 1 zero_data: true", f"{WARM_PATH}.data_type"),
        (WARM % "data_type: TYPE_FP32 dims: [ 2, -1 ] zero_data: true", f"{WARM_PATH}.dims[1]"),
        (WARM % "data_type: TYPE_FP32 dims: [ 65536, 65536 ] zero_data: true", f"{WARM_PATH}.dims"),
        (WARM % "data_type: TYPE_FP32 dims: 1", WARM_PATH),
        (
            WARM % "data_type: TYPE_FP32 dims: 3 input_data_file: 'two'",
            f"{WARM_PATH}.input_data_file",
        ),
        (
            WARM % "data_type: TYPE_FP32 dims: 1 input_data_file: 'three'",
            f"{WARM_PATH}.input_data_file",
        ),
        (
            WARM % "data_type: TYPE_FP32 dims: 1 input_data_file: '../labels.txt'",
            f"{WARM_PATH}.input_data_file",
        ),
        (
            WARM % "data_type: TYPE_FP32 dims: 1 input_data_file: ''",
            f"{WARM_PATH}.input_data_file",
        ),
        (
            BARE + IO + "batch_input { target_name: 'n' data_type: TYPE_FP32 }",
            "batch_input[0].source_input",
        ),
        (
            BARE + IO + "batch_input { target_name: 'n' data_type: TYPE_FP32 source_input: 'y' }",
            "batch_input[0].source_input",
        ),
        (
            BARE + IO + "batch_input { target_name: 'n' data_type: TYPE_INT8 source_input: 'x' }",
            "batch_input[0].data_type",
        ),
        (
            BARE + IO + "batch_input { target_name: 'x' data_type: TYPE_FP32 source_input: 'x' }",
            "batch_input[0].target_name[0]",
        ),
        (
            BARE + IO + "batch_input { data_type: TYPE_FP32 source_input: 'x' }",
            "batch_input[0].target_name",
        ),
        (
            BARE + IO + "batch_output { target_name: 'x' source_input: 'x' }",
            "batch_output[0].target_name[0]",
        ),
        (
            DYNAMIC + "{ preferred_batch_size: [ 4, 9 ] }",
            "dynamic_batching.preferred_batch_size[1]",
        ),
        (DYNAMIC + "{ } " + AUTO % "1", AUTO_PATH),
        (BARE + AUTO % "auto", AUTO_PATH),
        (DYNAMIC + "{ max_queue_delay_microseconds: 1 } " + AUTO % "auto", AUTO_PATH),
        (BARE + BUCKETS % "16,", 'parameters["padding_buckets"]'),
        (BARE + BUCKETS % "0", 'parameters["padding_buckets"]'),
        (BARE + BUCKETS % "many", 'parameters["padding_buckets"]'),
        (DYNAMIC + "{ preferred_batch_size: 0 }", "dynamic_batching.preferred_batch_size[0]"),
        (DYNAMIC + "{ priority_levels: 2 }", "dynamic_batching.default_priority_level"),
        (
            DYNAMIC + "{ priority_levels: 2 default_priority_level: 1"
            " priority_queue_policy { key: 3 value { } } }",
            'dynamic_batching.priority_queue_policy["3"]',
        ),
        (
            DYNAMIC + "{ priority_levels: 2 default_priority_level: 1 preserve_ordering: true }",
            "dynamic_batching.preserve_ordering",
        ),
        (
            DYNAMIC + "{ preserve_ordering: true default_queue_policy { timeout_action: DELAY"
            " default_timeout_microseconds: 1 } }",
            "dynamic_batching.default_queue_policy.timeout_action",
        ),
        (
            SEQUENCE + "{ direct { minimum_slot_utilization: 1.1 } }",
            "sequence_batching.direct.minimum_slot_utilization",
        ),
        (
            SEQUENCE + "{ direct { minimum_slot_utilization: nan } }",
            "sequence_batching.direct.minimum_slot_utilization",
        ),
        (
            SEQUENCE + "{ oldest { preferred_batch_size: 9 } }",
            "sequence_batching.oldest.preferred_batch_size[0]",
        ),
        (
            SEQUENCE + "{ oldest { max_candidate_sequences: -1 } }",
            "sequence_batching.oldest.max_candidate_sequences",
        ),
        (STATE + f"{FIRST} {FIRST} }} }}", "sequence_batching.state[0].initial_state"),
        (
            STATE + "initial_state { data_type: TYPE_FP32 dims: [2, 3] } } }",
            "sequence_batching.state[0].initial_state[0]",
        ),
        (
            STATE + FIRST.replace("FP32", "INT32") + "} }",
            "sequence_batching.state[0].initial_state[0].data_type",
        ),
        (
            STATE + FIRST.replace("2, 3", "2, -1") + "} }",
            "sequence_batching.state[0].initial_state[0].dims",
        ),
        (
            STATE + FIRST.replace("2, 3", "2") + "} }",
            "sequence_batching.state[0].initial_state[0].dims",
        ),
        (
            STATE + FIRST.replace("zero_data: true", "data_file: '../x'") + "} }",
            "sequence_batching.state[0].initial_state[0].data_file",
        ),
        (
            STATE + FIRST.replace("zero_data: true", "data_file: 'missing'") + "} }",
            "sequence_batching.state[0].initial_state[0].data_file",
        ),
        (STATE + "dims: 0 } }", "sequence_batching.state[0].dims[2]"),
        (STATE.replace("TYPE_FP32", "0") + "} }", "sequence_batching.state[0].data_type"),
        (STATE.replace("'t'", "''") + "} }", "sequence_batching.state[0].output_name"),
        (STATE + "} } " + IO.replace('"x"', '"s"'), "sequence_batching.state[0].input_name"),
        (
            STATE + "} } output { name: 't' data_type: TYPE_INT8 dims: 1 }",
            "sequence_batching.state[0].data_type",
        ),
        (
            SEQUENCE + "{ control_input { control { int32_false_true: [0, 1] } } }",
            "sequence_batching.control_input[0].name",
        ),
        (
            SEQUENCE + "{ control_input { name: 'c' } }",
            "sequence_batching.control_input[0].control",
        ),
        (CONTROL + "{ } } }", "sequence_batching.control_input[0].control[0]"),
        (
            CONTROL + "{ int32_false_true: 0 } } }",
            "sequence_batching.control_input[0].control[0].int32_false_true",
        ),
        (
            CONTROL + "{ int32_false_true: [0, 1] bool_false_true: [f, t] } } }",
            "sequence_batching.control_input[0].control[0]",
        ),
        (
            CONTROL + "{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } } }",
            "sequence_batching.control_input[0].control[0].data_type",
        ),
        (
            SEQUENCE + "{ } response_cache { enable: true }",
            "response_cache.enable",
        ),
        (
            BARE + "model_transaction_policy { decoupled: true } response_cache { enable: true }",
            "response_cache.enable",
        ),
        ("name: 'm' platform: 'ensemble'", "ensemble_scheduling"),
        ("name: 'm' platform: 'ensemble' ensemble_scheduling { }", "ensemble_scheduling.step"),
        (BARE + "instance_group { kind: KIND_CPU gpus: 0 }", "instance_group[0].gpus"),
        (BARE + "instance_group { kind: KIND_GPU gpus: [0, 7] }", "instance_group[0].gpus[1]"),
        (BARE + "instance_group { kind: 9 }", "instance_group[0].kind"),
        (BARE + "instance_group { profile: '0' }", "instance_group[0].profile[0]"),
        (TRT + "instance_group { profile: '-1' }", "instance_group[0].profile[0]"),
        (BARE + "instance_group { passive: true }", "instance_group"),
        (
            BARE + "model_metrics { metric_control { histogram_options { buckets: 1 } } }",
            "model_metrics.metric_control[0].metric_identifier.family",
        ),
        (
            BARE + "model_metrics { metric_control { metric_identifier { family: 'f' }"
            " histogram_options { buckets: [ 1, 3, 3 ] } } }",
            "model_metrics.metric_control[0].histogram_options.buckets",
        ),
        (
            BARE + "model_metrics { metric_control { metric_identifier { family: 'f' } } }",
            "model_metrics.metric_control[0].histogram_options.buckets",
        ),
    ],
)
def test_one_broken_rule(text: str, path: str, facts: Facts) -> None:
    assert set(paths(text, facts)) == {path}


@pytest.mark.parametrize(
    ("dims", "shape", "fits"),
    [
        ("[1]", "[]", True),
        ("[1, 1]", "[]", True),
        ("[2]", "[]", False),
        ("[-1]", "[]", False),
        ("[6]", "[2, 3]", True),
        ("[6]", "[2, 2]", False),
        ("[6]", "[-1, 6]", False),
        ("[2, -1, 6]", "[2, -1, 3, 2]", True),
        ("[2, -1, 6]", "[-1, 12]", False),
        ("[-1, 2, -1]", "[-1, -1, 2]", False),
        ("[-1, 2, -1]", "[1, -1, 1, 2, -1]", True),
    ],
)
@pytest.mark.parametrize("max_batch_size", [0, 4])
def test_reshape(dims: str, shape: str, fits: bool, max_batch_size: int, facts: Facts) -> None:
    tensor = f"input {{ name: 'x' data_type: TYPE_FP32 dims: {dims} reshape {{ shape: {shape} }} }}"
    found = paths(f"{BARE} max_batch_size: {max_batch_size} {tensor}", facts)
    assert found == ([] if fits else ["input[0].reshape.shape"])


def test_a_size_of_zero_in_a_reshape_is_told_once(facts: Facts) -> None:
    tensor = "input { name: 'x' data_type: TYPE_FP32 dims: 1 reshape { shape: [ 0 ] } }"
    assert paths(BARE + tensor, facts) == ["input[0].reshape.shape[0]"]


def test_names_are_unique_among_inputs_and_among_outputs(facts: Facts) -> None:
    assert paths(BARE + IO + IO, facts) == [
        "input[0].name",
        "input[1].name",
        "output[0].name",
        "output[1].name",
    ]


def test_targets_are_listed_once(facts: Facts) -> None:
    made = "batch_input { target_name: ['n', 'n'] data_type: TYPE_FP32 source_input: 'x' }"
    split = "batch_output { target_name: ['y', 'y'] source_input: 'x' }"
    assert paths(BARE + IO + made + split, facts) == [
        "batch_input[0].target_name[0]",
        "batch_input[0].target_name[1]",
        "batch_output[0].target_name[0]",
        "batch_output[0].target_name[1]",
    ]


def test_each_kind_of_control_is_given_once(facts: Facts) -> None:
    control = "control { int32_false_true: [ 0, 1 ] }"
    inputs = "".join(f"control_input {{ name: '{name}' {control} }} " for name in "ab")
    assert paths(SEQUENCE + f"{{ {inputs} }}", facts) == [
        f"sequence_batching.control_input[{index}].control[0].kind" for index in (0, 1)
    ]


def test_names_that_the_server_adds_are_used_once(facts: Facts) -> None:
    state = "state { input_name: 'c' output_name: 't' data_type: TYPE_FP32 dims: 1 }"
    control = "control_input { name: 'c' control { int32_false_true: [ 0, 1 ] } }"
    assert paths(SEQUENCE + f"{{ {control} {state} {state} }}", facts) == [
        "sequence_batching.control_input[0].name",
        "sequence_batching.state[0].input_name",
        "sequence_batching.state[1].input_name",
        "sequence_batching.state[0].output_name",
        "sequence_batching.state[1].output_name",
    ]


def test_an_ensemble_has_steps_and_nothing_of_a_backend(facts: Facts) -> None:
    text = """name: 'm' backend: 'python' ensemble_scheduling { step { } } instance_group { }
    optimization { } model_warmup { }"""
    assert paths(text, facts) == [
        "platform",
        "backend",
        "instance_group",
        "model_warmup",
        "optimization",
    ]


def test_gpus_are_not_judged_while_they_are_unknown(facts: Facts) -> None:
    unknown = Facts(facts.folder, facts.versions, None)
    assert paths(BARE + "instance_group { kind: KIND_GPU gpus: 9 }", unknown) == []
    none = Facts(facts.folder, facts.versions, ())
    assert paths(BARE + "instance_group { kind: KIND_GPU }", none) == ["instance_group[0].kind"]


def test_all_mistakes_come_at_once_and_say_what_to_do(facts: Facts) -> None:
    found = mistakes(
        parse("name: 'n' max_batch_size: -1 input { } dynamic_batching { priority_levels: 2 }")[0],
        facts,
    )
    assert [mistake.path for mistake in found] == [
        "name",
        "backend",
        "max_batch_size",
        "input[0].name",
        "input[0].data_type",
        "input[0].dims",
        "dynamic_batching.default_priority_level",
    ]
    assert "m" in found[0].message and found[1].hint and found[2].hint


@given(data=st.data())
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
def test_any_configuration_can_be_judged(
    configs: SearchStrategy[pb.ModelConfig], data: st.DataObject, facts: Facts
) -> None:
    assert all(mistake.message for mistake in mistakes(data.draw(configs), facts))

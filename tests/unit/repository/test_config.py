"""ModelConfig: reading, the three stages of completion, versions, and the forms it is given in."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from naiad.repository import jsonconf
from naiad.repository.config import ModelConfig
from naiad.repository.jsonconf import to_json
from naiad.repository.layout import ModelFolder
from naiad.repository.pbtxt import parse
from naiad_backends.api import Accelerator, Completion, Placement, TensorSpec
from naiad_backends.errors import Code, NaiadError
from naiad_proto import model_config_pb2 as pb

MakeModel = Callable[..., ModelFolder]

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }
"""
FOUND = Completion(
    inputs=(TensorSpec("x", "FP32", (-1, 3)), TensorSpec("s", "BYTES", (1,), reshape=())),
    outputs=(TensorSpec("y", "INT64", (2,)),),
    max_batch_size=4,
)


@pytest.fixture
def read(make_model: MakeModel) -> Callable[[str], ModelConfig]:
    """Read a config.pbtxt of a model 'm' with versions 1 and 3 of an ONNX file."""

    def read(text: str) -> ModelConfig:
        files = {"config.pbtxt": text, "1/model.onnx": "", "3/model.onnx": ""}
        return ModelConfig.read(make_model("m", files))

    return read


Read = Callable[[str], ModelConfig]


def error_of(call: Callable[[], object]) -> NaiadError:
    with pytest.raises(NaiadError) as caught:
        call()
    return caught.value


# -- reading


def test_the_name_is_the_folders(read: Read) -> None:
    assert read("").name == "m"


def test_a_model_without_a_file_has_an_empty_configuration(make_model: MakeModel) -> None:
    config = ModelConfig.read(make_model("m", {"1/model.onnx": ""}))
    assert config.message() == pb.ModelConfig(name="m")


def test_yaml_is_read(make_model: MakeModel) -> None:
    config = ModelConfig.read(make_model("m", {"config.yaml": "max_batch_size: 3"}))
    assert config.max_batch_size == 3


def test_two_formats_at_once_are_a_mistake(make_model: MakeModel) -> None:
    folder = make_model("m", {"config.yaml": "", "config.pbtxt": ""})
    assert "keep one of the two" in str(error_of(lambda: ModelConfig.read(folder)))


def test_a_named_configuration_is_preferred_where_it_exists(make_model: MakeModel) -> None:
    files = {"config.pbtxt": "max_batch_size: 1", "configs/big.pbtxt": "max_batch_size: 2"}
    folder = make_model("m", files)
    assert ModelConfig.read(folder, "big").max_batch_size == 2
    assert ModelConfig.read(folder, "small").max_batch_size == 1


def test_mistakes_of_form_name_the_file_and_line(make_model: MakeModel) -> None:
    folder = make_model("m", {"configs/big.pbtxt": "\nmax_batch_size: big"})
    error = error_of(lambda: ModelConfig.read(folder, "big"))
    assert (error.code, error.field) == (Code.INVALID_ARG, "configs/big.pbtxt:2")


def test_a_byte_order_mark_is_no_mistake(make_model: MakeModel) -> None:
    folder = make_model("m", {"config.pbtxt": "\ufeffmax_batch_size: 1"})
    assert ModelConfig.read(folder).max_batch_size == 1


def test_a_file_that_is_no_text_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_bytes(b"\n\nname: '\xff'")
    error = error_of(lambda: ModelConfig.read(ModelFolder.at(tmp_path)))
    assert error.field == "config.pbtxt:3"
    assert "UTF-8" in error.message


def test_an_override_is_protobuf_json(read: Read) -> None:
    folder = read("").source.folder
    text = '{"maxBatchSize": 2, "input": [{"name": "x", "data_type": "type_fp32", "dims": ["3"]}]}'
    expected = parse("name: 'm' max_batch_size: 2 input { name: 'x' data_type: TYPE_FP32 dims: 3 }")
    assert ModelConfig.from_json(text, folder).message() == expected[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "expected an object"),
        ('{"max_batchsize": 1}', "did you mean 'max_batch_size'"),
        ('{"name": "a", "name": "b"}', "given twice"),
        ('{"max_batch_size": 1.5}', "max_batch_size"),
        ('{"input": [{"data_type": "TYPE_FP33"}]}', "TYPE_FP33"),
        ('{"name": "\\ud800"}', "surrogates"),
        ("[" * 100_000, "recursion"),
        ('{"max_batch_size": ' + "9" * 5000 + "}", "limit"),
    ],
)
def test_a_bad_override_is_refused(read: Read, text: str, message: str) -> None:
    folder = read("").source.folder
    error = error_of(lambda: ModelConfig.from_json(text, folder))
    assert error.code is Code.INVALID_ARG
    assert message in str(error)


def test_many_repeated_names_are_found_quickly(read: Read) -> None:
    names = ", ".join(f'"x{number % 50_000}": 1' for number in range(100_000))
    error = error_of(lambda: ModelConfig.from_json(f"{{{names}}}", read("").source.folder))
    assert "100000 mistakes" in str(error)
    assert "given twice" in str(error)
    assert len(str(error)) < 2000


_NAMES = st.sampled_from(
    [*pb.ModelConfig.DESCRIPTOR.fields_by_name, *pb.ModelInput.DESCRIPTOR.fields_by_name, "key"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_NAMES, _JSON, max_size=5))
def test_any_json_is_an_override_or_a_mistake(tree: dict[str, object]) -> None:
    try:
        jsonconf.parse(json.dumps(tree))
    except NaiadError as error:
        assert error.code is Code.INVALID_ARG


def test_what_it_says(read: Read) -> None:
    config = read("platform: 'onnxruntime_onnx' max_batch_size: 8 dynamic_batching { }")
    assert (config.platform, config.backend, config.max_batch_size) == ("onnxruntime_onnx", "", 8)
    assert config.dynamic_batching() is not None
    assert not config.has_sequence_batching
    assert not config.is_ensemble
    assert read("platform: 'ensemble'").is_ensemble
    assert read("sequence_batching { }").has_sequence_batching


# -- versions


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", [10]),
        ("version_policy { latest { } }", [10]),
        ("version_policy { latest { num_versions: 2 } }", [9, 10]),
        ("version_policy { latest { num_versions: 9 } }", [1, 2, 9, 10]),
        ("version_policy { all { } }", [1, 2, 9, 10]),
        ("version_policy { specific { versions: [9, 1, 9] } }", [1, 9]),
        ("version_policy { specific { versions: [2, 7] } }", [2]),
    ],
)
def test_version_policies(read: Read, policy: str, chosen: list[int]) -> None:
    assert read(policy).versions([10, 1, 9, 2]) == chosen


def test_missing_versions_are_told(read: Read) -> None:
    config = read("version_policy { specific { versions: [7, 2, 5] } }")
    assert config.missing_versions([1, 2]) == [5, 7]
    assert read("").missing_versions([]) == []


def test_a_policy_that_leaves_nothing_is_an_error(read: Read) -> None:
    config = read("\nversion_policy { specific { versions: 7 } }")
    error = error_of(lambda: config.versions([3, 1]))
    assert str(error) == (
        "config.pbtxt:2: version_policy: leaves no version to serve; its versions are 1, 3"
    )


def test_a_model_without_versions_is_an_error(read: Read) -> None:
    assert "such as m/1" in error_of(lambda: read("").versions([])).hint


# -- stage 1


@pytest.mark.parametrize(
    ("given", "file", "expected"),
    [
        ("", "model.onnx", ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("", "model.onnx/weights", ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("", "model.plan", ("tensorrt", "tensorrt_plan", "model.plan")),
        ("", "model.xml", ("openvino", "", "model.xml")),
        ("", "model.pt", ("pytorch", "pytorch_libtorch", "model.pt")),
        ("", "model.pt2", ("pytorch", "torch_aoti", "model.pt2")),
        ("", "model.py", ("python", "", "model.py")),
        ("", "model.graphdef", ("tensorflow", "tensorflow_graphdef", "model.graphdef")),
        ("", "model.savedmodel/x", ("tensorflow", "tensorflow_savedmodel", "model.savedmodel")),
        (
            'platform: "onnxruntime_onnx"',
            "x",
            ("onnxruntime", "onnxruntime_onnx", "model.onnx"),
        ),
        ('backend: "onnxruntime"', "x", ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ('backend: "pytorch"', "model.pt2", ("pytorch", "torch_aoti", "model.pt2")),
        ('backend: "pytorch"', "x", ("pytorch", "pytorch_libtorch", "model.pt")),
        (
            'backend: "pytorch" default_model_filename: "net.pt2"',
            "model.pt",
            ("pytorch", "torch_aoti", "net.pt2"),
        ),
        (
            'default_model_filename: "net.onnx"',
            "net.onnx",
            ("onnxruntime", "onnxruntime_onnx", "net.onnx"),
        ),
        ('backend: "identity"', "x", ("identity", "", "")),
        ('platform: "ensemble"', "x", ("", "ensemble", "")),
    ],
)
def test_stage_1(make_model: MakeModel, given: str, file: str, expected: tuple[str, ...]) -> None:
    folder = make_model("m", {"config.pbtxt": given, f"2/{file}": ""})
    message = ModelConfig.read(folder).with_backend(folder, 2).message()
    assert (message.backend, message.platform, message.default_model_filename) == expected


@pytest.mark.parametrize(
    ("files", "filename"), [({"1/x": ""}, ""), ({"1/model.mine": ""}, "model.mine")]
)
def test_stage_1_by_the_models_name(
    make_model: MakeModel, files: dict[str, str], filename: str
) -> None:
    folder = make_model("resnet.v2.mine", files)
    message = ModelConfig.read(folder).with_backend(folder, 1).message()
    assert (message.backend, message.default_model_filename) == ("mine", filename)


def test_stage_1_finds_nothing(make_model: MakeModel) -> None:
    folder = make_model("m", {"1/weights.bin": ""})
    config = ModelConfig.read(folder)
    error = error_of(lambda: config.with_backend(folder, 1))
    assert error.code is Code.INVALID_ARG
    assert "model.onnx" in error.hint


def test_stage_1_with_an_unknown_platform(read: Read) -> None:
    config = read("platform: 'caffe'")
    error = error_of(lambda: config.with_backend(config.source.folder, 1))
    assert "platform: 'caffe' is unknown" in str(error)
    assert error.field == "config.pbtxt:1"


# -- stage 2


def test_stage_2_fills_everything(read: Read) -> None:
    expected, _ = parse(
        """name: "m" max_batch_size: 4 dynamic_batching { }
        input { name: "x" data_type: TYPE_FP32 dims: [-1, 3] }
        input { name: "s" data_type: TYPE_STRING dims: 1 reshape { } }
        output { name: "y" data_type: TYPE_INT64 dims: 2 }"""
    )
    assert read("").with_completion(FOUND).message() == expected


def test_stage_2_keeps_what_is_given(read: Read) -> None:
    config = read(
        """max_batch_size: 2
        input { name: "s" dims: [ 1 ] optional: true }
        input { name: "x" data_type: TYPE_FP32 }
        output { name: "y" data_type: TYPE_INT64 dims: [ -1 ] }"""
    ).with_completion(FOUND)
    expected, _ = parse(
        """name: "m" max_batch_size: 2
        input { name: "s" data_type: TYPE_STRING dims: [ 1 ] optional: true }
        input { name: "x" data_type: TYPE_FP32 dims: [-1, 3] }
        output { name: "y" data_type: TYPE_INT64 dims: [ -1 ] }"""
    )
    assert config.message() == expected


def test_stage_2_leaves_a_full_configuration_alone(read: Read) -> None:
    config = read(TENSORS)
    assert config.with_completion(FOUND).message() == config.message()


def test_stage_2_keeps_a_scheduler(read: Read) -> None:
    config = read("sequence_batching { }").with_completion(FOUND)
    assert config.has_sequence_batching and config.max_batch_size == 4


def test_a_model_that_cannot_batch_gets_no_batcher(read: Read) -> None:
    config = read("").with_completion(Completion(FOUND.inputs, FOUND.outputs, 0))
    assert (config.max_batch_size, config.dynamic_batching()) == (0, None)


def test_stage_2_takes_what_the_models_author_says(read: Read) -> None:
    inputs = (TensorSpec("x", "FP32", (3,), optional=True), TensorSpec("z", "INT8", (1,)))
    found = Completion(inputs, (), 8, dynamic_batching=True, decoupled=True)
    config = read(f"{TENSORS} max_batch_size: 2").with_completion(found)
    expected, _ = parse(
        f"""name: "m" {TENSORS} max_batch_size: 8 dynamic_batching {{ }}
        input {{ name: "z" data_type: TYPE_INT8 dims: 1 }}
        model_transaction_policy {{ decoupled: true }}"""
    )
    expected.input[0].optional = True
    assert config.message() == expected


def test_stage_2_without_a_batcher_by_the_models_author(read: Read) -> None:
    found = replace(FOUND, dynamic_batching=False)
    config = read("").with_completion(found)
    assert (config.max_batch_size, config.dynamic_batching()) == (4, None)


def test_stage_2_keeps_scheduler_and_policy_of_the_configuration(read: Read) -> None:
    found = replace(FOUND, dynamic_batching=True, decoupled=True)
    config = read("sequence_batching { } model_transaction_policy { }").with_completion(found)
    assert config.has_sequence_batching and config.dynamic_batching() is None
    assert not config.message().model_transaction_policy.decoupled


def test_stage_2_takes_a_batch_size_beside_parts_of_tensors(read: Read) -> None:
    found = replace(FOUND, dynamic_batching=False)
    config = read('input { name: "x" data_type: TYPE_FP32 }').with_completion(found)
    assert config.max_batch_size == 4
    assert list(config.message().input[0].dims) == [-1, 3]


def test_stages_leave_the_old_configuration_as_it_was(read: Read) -> None:
    config = read("")
    before = config.message()
    config.with_backend(config.source.folder, 1).with_completion(FOUND).with_defaults([0], 2)
    config.message().max_batch_size = 7
    assert config.message() == before


# -- defaults


def test_defaults_without_anything_given(read: Read) -> None:
    expected, _ = parse(
        """name: "m" version_policy { latest { num_versions: 1 } }
        optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
        instance_group { name: "m" kind: KIND_CPU count: 2 }"""
    )
    assert read("").with_defaults([], 2).message() == expected


def test_defaults_keep_what_is_given(read: Read) -> None:
    text = """name: "m" version_policy { all { } } max_batch_size: 8
        optimization { input_pinned_memory { enable: false } output_pinned_memory { } }
        instance_group { name: "g" kind: KIND_GPU count: 3 gpus: 1 }
        dynamic_batching { preferred_batch_size: 4 }"""
    config = read(text)
    assert config.with_defaults([0, 1], 2).message() == config.message()


def test_defaults_of_schedulers(read: Read) -> None:
    batching = read("max_batch_size: 8 dynamic_batching { }").with_defaults([], 1).message()
    assert batching.dynamic_batching.preferred_batch_size == [8]
    message = (
        read("max_batch_size: 8 sequence_batching { oldest { } }").with_defaults([], 1).message()
    )
    assert message.sequence_batching.oldest.preferred_batch_size == [8]
    assert message.sequence_batching.max_sequence_idle_microseconds == 1_000_000
    unbatched = read("dynamic_batching { }").with_defaults([], 1).message()
    assert unbatched.dynamic_batching.preferred_batch_size == []


def test_an_ensemble_gets_no_instances(read: Read) -> None:
    message = read("platform: 'ensemble' ensemble_scheduling { }").with_defaults([0], 1).message()
    assert not message.instance_group and not message.HasField("optimization")


@pytest.mark.parametrize(
    ("groups", "gpus", "expected"),
    [
        ("", [], [("m_0", "CPU", 0), ("m_1", "CPU", 0)]),
        ("", [0, 1], [("m_0", "GPU", 0), ("m_1", "GPU", 1)]),
        ("{ kind: KIND_CPU }", [0], [("m_0_0", "CPU", 0), ("m_0_1", "CPU", 0)]),
        (
            "{ count: 1 } , { count: 1 kind: KIND_MODEL }",
            [],
            [("m_0_0", "CPU", 0), ("m_1_0", "MODEL", 0)],
        ),
        (
            "{ name: 'g' count: 2 gpus: [0, 2] }",
            [0, 1, 2],
            [("g_0", "GPU", 0), ("g_1", "GPU", 0), ("g_2", "GPU", 2), ("g_3", "GPU", 2)],
        ),
        ("{ count: 1 gpus: [5] }", [0], [("m_0_0", "CPU", 0)]),
        ("{ count: 1 passive: true }, { count: 1 }", [], [("m_1_0", "CPU", 0)]),
    ],
)
def test_placements(
    read: Read, groups: str, gpus: Sequence[int], expected: list[tuple[str, str, int]]
) -> None:
    config = read(f"instance_group [ {groups} ]").with_defaults(gpus, 2)
    placements = config.spec(1, config.source.folder).placements
    assert [(p.name, p.kind, p.device) for p in placements] == expected


# -- judgement


def test_validate_tells_every_mistake_with_its_line(read: Read) -> None:
    config = read(
        """name: "other"
backend: "onnxruntime"
input { name: "x" data_type: TYPE_FP32
  dims: [ 1, 0 ] }
"""
    )
    error = error_of(config.validate)
    assert error.code is Code.INVALID_ARG
    assert error.field == "config.pbtxt:1"
    assert error.message.startswith("2 mistakes: line 1: name: 'other' differs")
    assert "line 4: input[0].dims[1]: 0 is no size" in error.message


def test_a_good_configuration_passes(read: Read) -> None:
    config = read(TENSORS)
    config.with_backend(config.source.folder, 3).with_defaults([], 1).validate()


def test_the_models_file_must_exist_in_each_version(make_model: MakeModel) -> None:
    files = {"config.pbtxt": TENSORS + "version_policy { all { } }", "1/x": "", "2/model.onnx": ""}
    folder = make_model("m", files)
    error = error_of(ModelConfig.read(folder).with_backend(folder, 2).validate)
    assert "version 1 has no 'model.onnx'" in str(error)
    assert "m/1/model.onnx" in str(error)


def test_a_gpu_group_needs_a_gpu(read: Read) -> None:
    config = read(TENSORS + "backend: 'onnxruntime'\ninstance_group { kind: KIND_GPU }")
    config.validate()
    error = error_of(config.with_defaults([], 1).validate)
    assert error.field == "config.pbtxt:5"
    assert "KIND_AUTO" in error.hint


def test_refused_and_ignored(read: Read) -> None:
    config = read("\ndynamic_batching { }\nresponse_cache { }\nruntime: 'r'")
    assert config.refused() is None
    assert [text.split(":")[0] for text in config.ignored()] == ["runtime"]
    assert read("\nruntime: 'model.py'").ignored() == []
    agents = read('\nmodel_repository_agents { agents { name: "x" } }').refused()
    assert agents is not None
    assert (agents.code, agents.field) == (Code.UNSUPPORTED, "config.pbtxt:2")


def test_what_was_completed_is_not_reported_as_ignored(read: Read) -> None:
    config = read("").with_completion(FOUND)
    assert config.dynamic_batching() is not None
    assert config.ignored() == []


# -- forms


def test_spec(read: Read) -> None:
    config = read(
        """max_batch_size: 8 default_model_filename: "net.onnx"
        input { name: "x" data_type: TYPE_STRING dims: [ 1 ] reshape { } optional: true }
        input { name: "unknown" }
        output { name: "y" data_type: TYPE_BF16 dims: [ -1, 2 ] }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
        optimization { graph { level: -1 } execution_accelerators {
          gpu_execution_accelerator { name: "tensorrt" parameters { key: "a" value: "b" } }
          cpu_execution_accelerator { name: "openvino" } } }"""
    )
    folder = config.source.folder
    spec = config.with_defaults([], 1).spec(3, folder)
    assert (spec.name, spec.version, spec.path) == ("m", 3, folder.path / "3")
    assert (spec.filename, spec.max_batch_size) == ("net.onnx", 8)
    assert spec.inputs == (
        TensorSpec("x", "BYTES", (1,), reshape=(), optional=True),
        TensorSpec("unknown", "", ()),
    )
    assert spec.outputs == (TensorSpec("y", "BF16", (-1, 2)),)
    assert spec.parameters == {"intra_op_thread_count": "2"}
    assert spec.graph_level == -1
    assert spec.gpu_accelerators == (Accelerator("tensorrt", {"a": "b"}),)
    assert spec.cpu_accelerators == (Accelerator("openvino", {}),)
    assert spec.placements == (Placement("m_0", "CPU", 0),)


def test_to_json_has_the_form_that_clients_read(read: Read) -> None:
    tree = read(TENSORS + "parameters { key: 'k' value { string_value: 'v' } }").to_json()
    assert tree["input"] == [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [2],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert tree["parameters"] == {"k": {"string_value": "v"}}
    assert (tree["max_batch_size"], tree["platform"], tree["instance_group"]) == (0, "", [])
    assert "dynamic_batching" not in tree


@given(data=st.data())
@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
def test_to_text_reads_back(configs: SearchStrategy[pb.ModelConfig], data: st.DataObject) -> None:
    message = data.draw(configs)
    message.name = "m"
    override = json.dumps(to_json(message))
    config = ModelConfig.from_json(override, ModelFolder("m", Path("m"), ()))
    assert parse(config.to_text())[0] == message

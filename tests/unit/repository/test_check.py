"""`naiad check`: every mistake of a repository with file and line, and the completed configs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from naiad.repository.check import ModelReport, check, render
from naiad.repository.layout import ModelFolder
from naiad.repository.pbtxt import parse
from naiad_backends.errors import Code, NaiadError
from naiad_backends.registry import BackendRegistry

MakeModel = Callable[..., ModelFolder]

GOOD = """backend: "identity"
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }
"""


def only(path: Path, backends: BackendRegistry | None = None) -> ModelReport:
    (report,) = check([path], backends)
    return report


def mistakes(report: ModelReport) -> list[str]:
    return [f"{f.file.name}:{f.line}: {f.path}" for f in report.mistakes]


def test_a_good_repository(tmp_path: Path, make_model: MakeModel) -> None:
    make_model("b", {"config.pbtxt": GOOD, "1/x": ""})
    make_model("a", {"config.yaml": "backend: identity", "1/x": ""})
    reports = check([tmp_path], None)
    assert [(report.name, report.mistakes) for report in reports] == [("a", []), ("b", [])]
    assert reports[1].file == tmp_path / "b" / "config.pbtxt"


def test_the_completed_configuration_can_be_read_again(
    tmp_path: Path, make_model: MakeModel
) -> None:
    make_model("m", {"config.pbtxt": GOOD, "1/x": ""})
    report = only(tmp_path, BackendRegistry())
    assert report.mistakes == []
    message, _ = parse(report.completed)
    assert message.instance_group[0].name == "m"


def test_mistakes_of_form_name_file_line_path_and_remedy(
    tmp_path: Path, make_model: MakeModel
) -> None:
    make_model("m", {"config.pbtxt": "max_batchsize: 1\ninput {\n dims: x }", "1/x": ""})
    report = only(tmp_path)
    assert mistakes(report) == ["config.pbtxt:1: max_batchsize", "config.pbtxt:3: input[0].dims[0]"]
    assert render([report]).splitlines()[0] == (
        f"{tmp_path}/m/config.pbtxt:1: max_batchsize: unknown field; did you mean 'max_batch_size'?"
    )


def test_mistakes_of_meaning_come_all_at_once(tmp_path: Path, make_model: MakeModel) -> None:
    text = """name: "n"
input { name: "x" data_type: TYPE_FP32 dims: [ 0 ] }
version_policy { specific { versions: [ 5 ] } }
sequence_batching { }
"""
    make_model("m", {"config.pbtxt": text, "1/weights.bin": ""})
    found = mistakes(only(tmp_path))
    assert "config.pbtxt:1: name" in found
    assert "config.pbtxt:2: input[0].dims[0]" in found
    assert "config.pbtxt:3: version_policy" in found
    assert "config.pbtxt:0: backend" in found


def test_what_is_not_done_yet(tmp_path: Path, make_model: MakeModel) -> None:
    make_model(
        "m", {"config.pbtxt": GOOD + "model_repository_agents { agents { name: 'x' } }", "1/x": ""}
    )
    make_model("n", {"config.pbtxt": GOOD + "runtime: 'r'", "1/x": ""})
    agents, runtime = check([tmp_path], None)
    assert "config.pbtxt:4: model_repository_agents.agents" in mistakes(agents)
    assert runtime.mistakes == []
    assert [(w.line, w.path) for w in runtime.warnings] == [(4, "runtime")]
    assert "warning: " in render([runtime])


def test_mistakes_of_a_warm_up_have_their_lines(tmp_path: Path, make_model: MakeModel) -> None:
    text = (
        GOOD
        + """model_warmup { batch_size: 1
  inputs { key: "x" value {
    data_type: TYPE_FP32 dims: 2
    input_data_file: "x"
  } }
}
"""
    )
    make_model("m", {"config.pbtxt": text, "1/x": "", "warmup/x": "1234567"})
    report = only(tmp_path)
    assert mistakes(report) == ['config.pbtxt:7: model_warmup[0].inputs["x"].input_data_file']
    assert report.mistakes[0].message == "'x' has 7 bytes; the shape needs 8 bytes"


def test_a_model_without_a_version(tmp_path: Path, make_model: MakeModel) -> None:
    make_model("m", {"config.pbtxt": GOOD, "first/x": ""})
    report = only(tmp_path)
    assert [f.message for f in report.mistakes] == ["model 'm' has no version"]
    assert [f.file.name for f in report.warnings] == ["first"]


def test_a_broken_config_does_not_hide_the_missing_version(
    tmp_path: Path, make_model: MakeModel
) -> None:
    make_model("m", {"config.pbtxt": "name: 1"})
    assert mistakes(only(tmp_path)) == ["config.pbtxt:1: name", "m:0: "]


def test_a_missing_model_file(tmp_path: Path, make_model: MakeModel) -> None:
    text = "backend: 'onnxruntime' version_policy { all { } }"
    make_model("m", {"config.pbtxt": text, "1/model.onnx": "", "2/weights": ""})
    assert [f.message for f in only(tmp_path).mistakes] == ["version 2 has no 'model.onnx'"]


def test_nothing_tells_the_backend(tmp_path: Path, make_model: MakeModel) -> None:
    make_model("m", {"1/weights": ""})
    assert mistakes(only(tmp_path)) == ["m:0: backend"]


def test_an_unknown_backend(tmp_path: Path, make_model: MakeModel) -> None:
    make_model("m", {"config.pbtxt": "\nbackend: 'nosuch'", "1/x": ""})
    (finding,) = only(tmp_path, BackendRegistry()).mistakes
    assert (finding.line, finding.path) == (2, "backend")
    assert "no backend is called 'nosuch'" in finding.message


def test_missing_versions_and_misnamed_configs_are_warnings(
    tmp_path: Path, make_model: MakeModel
) -> None:
    text = GOOD + "version_policy { specific { versions: [ 1, 7 ] } }"
    make_model("m", {"config.pbtxt": text, "config.yml": "", "1/x": ""})
    report = only(tmp_path)
    assert report.mistakes == []
    assert [w.file.name for w in report.warnings] == ["config.yml", "config.pbtxt"]
    assert "no folder for 7" in report.warnings[1].message


def test_a_name_in_two_repositories(tmp_path: Path, make_model: MakeModel) -> None:
    for repository in ("a", "b"):
        make_model("m", {"1/model.onnx": ""}, tmp_path / repository)
    (report,) = check([tmp_path / "a", tmp_path / "b"], None)
    assert "two repositories" in report.mistakes[0].message


def test_a_single_models_folder(tmp_path: Path, make_model: MakeModel) -> None:
    make_model("m", {"config.pbtxt": GOOD, "1/x": ""})
    make_model("bare", {"1/model.onnx": ""})
    assert [report.name for report in check([tmp_path / "m"], None)] == ["m"]
    assert [report.name for report in check([tmp_path / "bare"], None)] == ["bare"]


def test_a_model_may_be_called_by_a_number(tmp_path: Path, make_model: MakeModel) -> None:
    make_model("1", {"1/model.onnx": ""})
    assert [report.name for report in check([tmp_path], None)] == ["1"]


def test_only_the_models_asked_for(tmp_path: Path, make_model: MakeModel) -> None:
    for name in ("a", "b"):
        make_model(name, {"config.pbtxt": GOOD, "1/x": ""})
    assert [report.name for report in check([tmp_path], None, ["b"])] == ["b"]
    with pytest.raises(NaiadError) as caught:
        check([tmp_path], None, ["c"])
    assert caught.value.code is Code.NOT_FOUND


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NaiadError, match="does not exist"):
        check([tmp_path / "nowhere"], None)


def test_the_summary_counts(tmp_path: Path, make_model: MakeModel) -> None:
    make_model("m", {"config.pbtxt": "name: 1", "1/x": ""})
    make_model("n", {"config.pbtxt": GOOD, "1/x": "", "old/x": ""})
    text = render(check([tmp_path], None))
    assert text.endswith("2 models, 1 mistake, 1 warning\n")
    assert "# n: completed configuration" in text
    assert "# m: completed configuration" not in text


def save_onnx(path: Path) -> None:
    """y = x + 1 with a batch dimension."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "g", [x], [y], [one])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))


def test_a_backend_completes_from_the_models_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "m" / "1").mkdir(parents=True)
    save_onnx(tmp_path / "m" / "1" / "model.onnx")
    report = only(tmp_path, BackendRegistry())
    assert report.mistakes == []
    message, _ = parse(report.completed)
    assert (message.input[0].name, list(message.input[0].dims)) == ("x", [3])
    assert message.max_batch_size == message.dynamic_batching.preferred_batch_size[0] == 4


def test_a_corrupt_models_file_is_a_mistake(tmp_path: Path, make_model: MakeModel) -> None:
    pytest.importorskip("onnxruntime")
    make_model("m", {"1/model.onnx": "this is no model"})
    assert len(only(tmp_path, BackendRegistry()).mistakes) == 1

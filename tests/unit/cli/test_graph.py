"""`naiad graph`: the diagram of an ensemble."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from naiad.cli import main

PIPELINE = """
platform: ensemble
input: [{ name: X, data_type: FP32, dims: [-1] }]
output: [{ name: Y, data_type: FP32, dims: [-1] }]
ensemble_scheduling:
  step:
    - { model_name: first, input_map: { IN: X }, output_map: { OUT: between } }
    - model_name: second
      model_version: 3
      input_map: { A: between, B: X }
      output_map: { OUT: Y }
      when: max(X) > 1 or parameters["all"] == "yes"
      map: { over: [between] }
      retries: 2
      fallback: [third, null]
"""

DIAGRAM = """\
flowchart LR
    in0(["X"])
    step0["0: first"]
    step1["1: second version 3<br/>when max(X) > 1 or parameters[#quot;all#quot;] == \
#quot;yes#quot;\
<br/>for each item of between<br/>2 retries<br/>else third, nothing"]
    in0 -->|"X"| step0
    in0 -->|"X"| step1
    step0 -->|"between"| step1
    out0(["Y"])
    step1 --> out0
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in (("pipeline", PIPELINE), ("plain", "backend: identity")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(text)
    return tmp_path


def graph(repository: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["graph", f"--model-repository={repository}", *arguments])
    return result.exit_code, result.output


def test_the_diagram(repository: Path) -> None:
    assert graph(repository, "pipeline") == (0, DIAGRAM)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plain"], "is no ensemble"),
        (["pipelin"], "did you mean 'pipeline'?"),
        (["pipeline", "--url=ftp://127.0.0.1"], "is no http address"),
        (["pipeline", "--url=http://127.0.0.1:1"], "does not answer"),
    ],
)
def test_mistakes(repository: Path, arguments: list[str], says: str) -> None:
    code, output = graph(repository, *arguments)
    assert code == 1
    assert says in output

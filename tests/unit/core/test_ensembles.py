"""Ensembles as `naiad check` sees them: held against models that are only configured."""

from pathlib import Path

import pytest
from tests.e2e import ensembles as forms
from tests.e2e.ensembles import FLOATS, chain, step
from tests.e2e.graphs import IDENTITY, write_model
from tests.e2e.test_generate import REPEAT

from naiad.core import ensembles
from naiad.repository.check import ModelReport, check
from naiad_backends.registry import BackendRegistry


def checked(*paths: Path) -> dict[str, ModelReport]:
    reports = check(paths, BackendRegistry(), graphs=ensembles.mistakes)
    return {report.name: report for report in reports}


def found(report: ModelReport) -> list[str]:
    return [str(finding).removeprefix(str(report.file)) for finding in report.mistakes]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path, "identity", config=IDENTITY)
    write_model(tmp_path, "repeat", config=REPEAT)
    forms.write(tmp_path, "inner", chain("identity"))
    return tmp_path


def test_good_ones(repository: Path) -> None:
    forms.write(repository, "pipe", chain("identity", "identity"))
    outer = step("inner", {"x": "x"}, {"y": "y"})
    forms.write(repository, "outer", forms.config({"x": FLOATS}, {"y": FLOATS}, outer))
    assert all(not report.mistakes for report in checked(repository).values())


def test_a_single_one_finds_its_steps_beside_it(repository: Path) -> None:
    forms.write(repository, "pipe", chain("identity", "nothing"))
    reports = checked(repository / "pipe")
    assert found(reports["pipe"]) == [
        ":12: ensemble_scheduling.step[1].model_name: there is no model 'nothing' that is loaded;"
        " put it into the repository and load it, or name another one"
    ]
    assert list(reports) == ["pipe"]


def test_each_mistake_has_its_line(repository: Path) -> None:
    text = forms.config(
        {"x": ("INT32", "-1"), "unused": FLOATS},
        {"y": FLOATS},
        step("identity", {"INPUT0": "x"}, {"OUTPUT0": "t"}),
        step("identity", {"other": "t"}, {"OUTPUT0": "y"}, version=3),
        batch=16,
    )
    forms.write(repository, "pipe", text)
    lines = text.splitlines()
    for finding in checked(repository)["pipe"].mistakes:
        assert finding.line
        last = finding.path.split(".")[-1].split("[")[0]
        assert last in lines[finding.line - 1]
    paths = {finding.path for finding in checked(repository)["pipe"].mistakes}
    assert paths >= {
        "input[1].name",
        'ensemble_scheduling.step[0].input_map["INPUT0"]',
        "ensemble_scheduling.step[1].model_name",
        "max_batch_size",
    }


def test_a_step_with_mistakes_of_its_own(repository: Path) -> None:
    write_model(repository, "broken", config=IDENTITY + "max_batch_size: x")
    forms.write(repository, "pipe", chain("broken"))
    (text,) = found(checked(repository)["pipe"])
    assert "model 'broken' has mistakes itself; mend those first" in text


def test_cycles(repository: Path) -> None:
    for name, target in (("a", "b"), ("b", "c"), ("c", "b"), ("d", "d")):
        text = forms.config({"x": FLOATS}, {"y": FLOATS}, step(target, {"x": "x"}, {"y": "y"}))
        forms.write(repository, name, text)
    reports = checked(repository)
    assert "step[0].model_name: the ensemble contains itself: b -> c -> b" in found(reports["b"])[0]
    assert "the ensemble contains itself: d -> d" in found(reports["d"])[0]
    # What is only in front of one is told where that is.
    assert not reports["a"].mistakes


def test_what_is_decoupled_deep_inside(repository: Path) -> None:
    """Two decoupled ones whose responses do not belong together."""
    maps = {name: name for name in ("IN", "DELAY", "WAIT")}
    inputs = {"IN": ("INT32", "-1"), "DELAY": ("UINT32", "-1"), "WAIT": ("UINT32", "1")}
    ints = ("INT32", "1")
    inner = forms.config(inputs, {"y": ints}, step("repeat", maps, {"OUT": "y"}), batch=0)
    forms.write(repository, "many", inner)
    pair = """backend: "identity"
input [ { name: "a" data_type: TYPE_INT32 dims: 1 }, { name: "b" data_type: TYPE_INT32 dims: 1 } ]
output [ { name: "A" data_type: TYPE_INT32 dims: 1 }, { name: "B" data_type: TYPE_INT32 dims: 1 } ]
"""
    write_model(repository, "pair", config=pair)
    outer = forms.config(
        inputs,
        {"A": ints, "B": ints},
        step("many", maps, {"y": "a"}),
        step("many", maps, {"y": "b"}),
        step("pair", {"a": "a", "b": "b"}, {"A": "A", "B": "B"}),
        batch=0,
    )
    forms.write(repository, "outer", outer)
    (text,) = found(checked(repository)["outer"])
    assert "do not belong together" in text

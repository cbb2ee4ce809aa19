"""Ensembles in a few words, for tests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from naiad_backends.api import TensorSpec
from naiad_ensembles.checks import build
from naiad_ensembles.graph import Graph
from naiad_ensembles.problems import Problem
from naiad_ensembles.steps import Ensemble, Step, StepModel

Models = Mapping[str, StepModel]


def spec(name: str, dims: Sequence[int] = (1,), datatype: str = "FP32") -> TensorSpec:
    """`x` or, for one that may be left out, `x?`."""
    return TensorSpec(name.rstrip("?"), datatype, tuple(dims), optional=name.endswith("?"))


def specs(names: str) -> tuple[TensorSpec, ...]:
    return tuple(map(spec, names.split()))


def model(inputs: str = "x", outputs: str = "y", **rest: object) -> StepModel:
    """A model that takes and gives tensors of one number."""
    return replace(StepModel(specs(inputs), specs(outputs)), **rest)  # type: ignore[arg-type]


def step(name: str, inputs: str, outputs: str, **rest: object) -> Step:
    """inputs, outputs: pairs such as `x=image`, or `x` for `x=x`."""
    return replace(Step(name, "", pairs(inputs), pairs(outputs)), **rest)  # type: ignore[arg-type]


def pairs(text: str) -> dict[str, str]:
    return {name: tensor or name for name, _, tensor in (p.partition("=") for p in text.split())}


def ensemble(inputs: str, outputs: str, *steps: Step, **rest: object) -> Ensemble:
    return replace(
        Ensemble("pipeline", 0, specs(inputs), specs(outputs), steps),
        **rest,  # type: ignore[arg-type]
    )


def problems(ensemble: Ensemble, models: Models) -> list[Problem]:
    return build(ensemble, lambda name, version: models.get(name))[1]


def graph(ensemble: Ensemble, models: Models) -> Graph:
    built, found = build(ensemble, lambda name, version: models.get(name))
    assert found == []
    return built

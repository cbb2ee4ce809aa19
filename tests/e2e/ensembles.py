"""Ensembles for tests: their configurations, put together from short forms.

Knows Triton's text format and nothing of what the tests are about.
"""

from collections.abc import Mapping
from pathlib import Path

from tests.e2e import graphs

FLOATS = ("FP32", "-1")
"""Datatype and dims of most tensors here."""

Tensors = Mapping[str, tuple[str, str]]
"""Datatype and dims by name; a name with a question mark is of an optional tensor."""


def step(
    model: str, inputs: Mapping[str, str], outputs: Mapping[str, str], version: int = -1
) -> str:
    """One step; the maps give the ensemble's name by the model's."""
    maps = [
        f'{field} {{ key: "{name}" value: "{tensor}" }}'
        for field, entries in (("input_map", inputs), ("output_map", outputs))
        for name, tensor in entries.items()
    ]
    lines = "\n    ".join([f'model_name: "{model}" model_version: {version}', *maps])
    return f"  step {{\n    {lines}\n  }}\n"


def config(
    inputs: Tensors, outputs: Tensors, *steps: str, batch: int = 8, inflight: int = 0
) -> str:
    """The text of config.pbtxt; more may be added to it."""
    head = ['platform: "ensemble"', f"max_batch_size: {batch}"]
    head += [_tensor("input", name, *form) for name, form in inputs.items()]
    head += [_tensor("output", name, *form) for name, form in outputs.items()]
    most = f"  max_inflight_requests: {inflight}\n" if inflight else ""
    scheduling = f"ensemble_scheduling {{\n{most}{''.join(steps)}}}"
    return "\n".join([*head, scheduling]) + "\n"


def write(repository: Path, name: str, text: str) -> Path:
    """Put an ensemble into a repository, with one version."""
    return graphs.write_model(repository, name, config=text)


def chain(*models: str) -> str:
    """Models with `INPUT0` and `OUTPUT0` in a row, `x` to `y`."""
    names = ["x", *(f"t{index}" for index in range(1, len(models))), "y"]
    steps = [
        step(model, {"INPUT0": names[index]}, {"OUTPUT0": names[index + 1]})
        for index, model in enumerate(models)
    ]
    return config({"x": FLOATS}, {"y": FLOATS}, *steps)


def _tensor(field: str, name: str, datatype: str, dims: str) -> str:
    optional = " optional: true" if name.endswith("?") else ""
    form = f"data_type: TYPE_{datatype} dims: [ {dims} ]{optional}"
    return f'{field} {{ name: "{name.rstrip("?")}" {form} }}'

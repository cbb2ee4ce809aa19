"""Ensembles in config.yaml: conditions, maps, retries and fallbacks, on a live server."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from tests.e2e.process import ServerProcess, serving

ECHO = """
backend: identity
max_batch_size: {batch}
input: [{{ name: IN, data_type: FP32, dims: {dims} }}]
output: [{{ name: OUT, data_type: FP32, dims: {dims} }}]
"""

PIPELINE = """
platform: ensemble
input: [{{ name: X, data_type: FP32, dims: [-1, 2] }}]
output: [{{ name: Y, data_type: FP32, dims: [-1, 2] }}]
ensemble_scheduling:
  step:
    - model_name: {model}
      input_map: {{ IN: X }}
      output_map: {{ OUT: Y }}
      {more}
"""

BRANCHES = """
platform: ensemble
input: [{ name: X, data_type: FP32, dims: [-1, 2] }]
output:
  - { name: LOW, data_type: FP32, dims: [-1, 2] }
  - { name: HIGH, data_type: FP32, dims: [-1, 2] }
ensemble_scheduling:
  step:
    - { model_name: whole, input_map: { IN: X }, output_map: { OUT: LOW }, when: max(X) < 1 }
    - model_name: whole
      input_map: { IN: X }
      output_map: { OUT: HIGH }
      when: max(X) >= 1 and parameters["high"] == "yes"
"""

FAILS = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        error = pb_utils.TritonError("on purpose")
        return [pb_utils.InferenceResponse(error=error) for _ in requests]
"""


def write(repository: Path, name: str, config: str, model: str = "") -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.yaml").write_text(config)
    if model:
        (version / "model.py").write_text(model)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("pipelines")
    write(repository, "whole", ECHO.format(batch=0, dims=[-1, 2]))
    write(repository, "one", ECHO.format(batch=8, dims=[2]))
    write(
        repository, "fails", ECHO.format(batch=0, dims=[-1, 2]).replace("identity", "python"), FAILS
    )
    for name, model, more in (
        ("mapped", "one", "map: { over: [X] }"),
        ("mapped_in_batches", "one", "map: { over: [X], as_batch: true, max_items: 20 }"),
        ("saved", "fails", "fallback: [whole]"),
        ("lost", "fails", "retries: 1"),
    ):
        write(repository, name, PIPELINE.format(model=model, more=more))
    write(repository, "branches", BRANCHES)
    with serving(tmp_path_factory.mktemp("server"), repository) as running:
        yield running


def ask(
    server: ServerProcess, model: str, x: np.ndarray, **parameters: str
) -> tritonclient.http.InferResult:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        tensor = tritonclient.http.InferInput("X", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        return client.infer(model, [tensor], parameters=parameters or None)


def numbers(rows: int) -> np.ndarray:
    return np.random.default_rng().random((rows, 2), np.float32)


@pytest.mark.parametrize("model", ["mapped", "mapped_in_batches"])
@pytest.mark.parametrize("rows", [0, 1, 7, 20])
def test_a_map_gives_each_item_its_place(server: ServerProcess, model: str, rows: int) -> None:
    x = numbers(rows)
    np.testing.assert_array_equal(ask(server, model, x).as_numpy("Y"), x)


def test_too_many_items(server: ServerProcess) -> None:
    with pytest.raises(tritonclient.http.InferenceServerException, match=r"step 0 .*'one'.*20"):
        ask(server, "mapped_in_batches", numbers(21))


def test_a_condition_chooses_the_branch(server: ServerProcess) -> None:
    x = numbers(3)
    low = ask(server, "branches", x)
    np.testing.assert_array_equal(low.as_numpy("LOW"), x)
    assert low.as_numpy("HIGH") is None
    high = ask(server, "branches", x + 1, high="yes")
    assert high.as_numpy("LOW") is None
    np.testing.assert_array_equal(high.as_numpy("HIGH"), x + 1)
    with pytest.raises(tritonclient.http.InferenceServerException, match="no step gave"):
        ask(server, "branches", x + 1)


def test_a_fallback_answers(server: ServerProcess) -> None:
    x = numbers(4)
    np.testing.assert_array_equal(ask(server, "saved", x).as_numpy("Y"), x)


def test_a_failure_that_nothing_mends_names_the_step(server: ServerProcess) -> None:
    with pytest.raises(tritonclient.http.InferenceServerException) as caught:
        ask(server, "lost", numbers(1))
    assert "ensemble 'lost', step 0 (model 'fails')" in str(caught.value)
    assert "on purpose" in str(caught.value)
    with tritonclient.http.InferenceServerClient(server.http) as client:
        stats = client.get_inference_statistics("fails")["model_stats"][0]["inference_stats"]
    # Once for each of the two attempts, and maybe for the other test's.
    assert stats["fail"]["count"] >= 2

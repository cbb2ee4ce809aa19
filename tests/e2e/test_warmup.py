"""Warm-up on a live server: before a version is ready, out of its statistics, and when it fails."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving
from tests.e2e.test_lifecycle import answer, index
from tritonclient.utils import InferenceServerException

CONFIG = """
max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }}
instance_group {{ count: 2 kind: KIND_CPU }}
model_warmup {{
  name: "first" batch_size: {batch_size} count: 3
  inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: {dims} {data} }} }}
}}
"""


def write(folder: Path, name: str, batch_size: int = 2, dims: str = "2", data: str = "") -> Path:
    config = CONFIG.format(batch_size=batch_size, dims=dims, data=data or "zero_data: true")
    return graphs.write_model(folder, name, {1: graphs.add(1)}, config)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write(folder, "zeros")
    stored = write(folder, "stored", data="input_data_file: 'two'")
    (stored / "warmup").mkdir()
    (stored / "warmup" / "two").write_bytes(np.array([1, 2], "<f4").tobytes())
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("log"), repository, flags=EXPLICIT_ALL) as running:
        yield running


@pytest.mark.parametrize("model", ["zeros", "stored"])
def test_a_warm_model_has_served_nobody_yet(server: ServerProcess, model: str) -> None:
    [stats] = server.get(f"/v2/models/{model}/stats").json()["model_stats"]
    assert (stats["inference_count"], stats["execution_count"], stats["last_inference"]) == (0,) * 3
    assert stats["batch_stats"] == []
    assert answer(server, model) == 1


def load_http(server: ServerProcess, model: str) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        client.load_model(model)


def load_grpc(server: ServerProcess, model: str) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.load_model(model)


Load = Callable[[ServerProcess, str], None]


@pytest.mark.parametrize("load", [load_http, load_grpc])
def test_a_warm_up_that_fails_fails_the_load(
    server: ServerProcess, repository: Path, load: Load
) -> None:
    # A request of this shape would be refused; a warm-up goes straight to the framework.
    write(repository, load.__name__, dims="[ 1, 1 ]")
    with pytest.raises(InferenceServerException) as caught:
        load(server, load.__name__)
    assert "config.pbtxt:6: model_warmup[0]: warm-up 'first' failed: " in str(caught.value)
    [line] = index(server, load.__name__)
    assert line["state"] == "UNAVAILABLE" and "warm-up 'first'" in line["reason"]


@pytest.mark.parametrize("load", [load_http, load_grpc])
def test_mistakes_are_found_before_the_load(
    server: ServerProcess, repository: Path, load: Load
) -> None:
    model = f"{load.__name__}_mistaken"
    write(repository, model, batch_size=5, data="input_data_file: '../../zeros/1/model.onnx'")
    with pytest.raises(InferenceServerException) as caught:
        load(server, model)
    text = str(caught.value)
    assert "line 7: model_warmup[0].batch_size: 5 is more than 4 that run at once" in text
    assert 'line 8: model_warmup[0].inputs["x"].input_data_file: ' in text

"""Classes instead of numbers, with a real model and its labels, over both protocols."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.e2e import graphs
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving
from tests.e2e.tensors import Array
from tritonclient.utils import InferenceServerException

ROW = np.array([[0.25, 0.5, 0.5, -1.0]], np.float32)


@pytest.fixture(scope="module")
def repository(example_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """echo: `y` = `x`, in batches, with labels that change in the tests. flag: BOOL. magika."""
    folder = tmp_path_factory.mktemp("repository")
    output = 'output { name: "y" data_type: TYPE_FP32 dims: -1 label_filename: "names.txt" }'
    tensors = f'input {{ name: "x" data_type: TYPE_FP32 dims: -1 }}\n{output}'
    config = f'backend: "onnxruntime"\nmax_batch_size: 8\n{tensors}'
    echo = graphs.write_model(folder, "echo", {1: graphs.echo("FP32")}, config)
    graphs.write_whole(echo / "names.txt", b"cat\r\ndog\n")
    graphs.write_model(folder, "flag", {1: graphs.echo("BOOL")})
    (folder / "magika").symlink_to(example_repository / "magika")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("server"), repository, flags=EXPLICIT_ALL) as server:
        yield server


@dataclass(frozen=True)
class Classifier:
    """One of tritonclient's two modules and a client of it."""

    module: Any
    client: Any

    def run(self, model: str, values: Array, count: int, **form: Any) -> Array:
        """The classes of `model`'s only output."""
        names = {"magika": ("bytes", "INT32", "target_label"), "flag": ("x", "BOOL", "y")}
        given, datatype, output = names.get(model, ("x", "FP32", "y"))
        tensor = self.module.InferInput(given, list(values.shape), datatype)
        asked = self.module.InferRequestedOutput(output, class_count=count, **form)
        inputs = [tensor.set_data_from_numpy(values)]
        found: Array = self.client.infer(model, inputs, outputs=[asked]).as_numpy(output)
        return found


@pytest.fixture(scope="module", params=["http", "grpc"])
def classifier(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Classifier]:
    module: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    client = module.InferenceServerClient(getattr(server, request.param))
    yield Classifier(module, client)
    client.close()


def test_magika_names_what_a_file_is(classifier: Classifier) -> None:
    features = np.full((2, 2048), 256, np.int32)
    source = Path(__file__).read_bytes().strip()
    features[:, :1024] = np.frombuffer(source[:1024], np.uint8)
    features[:, 1024:] = np.frombuffer(source[-1024:], np.uint8)
    found = classifier.run("magika", features, 3)
    assert found.shape == (2, 3)
    for best in found:
        value, _, label = best[0].decode().split(":")
        assert float(value) > 0.5
        assert label == "python"
        assert len({element.rpartition(b":")[2] for element in best}) == 3


def test_equal_values_and_missing_labels(classifier: Classifier) -> None:
    found = classifier.run("echo", ROW, 3)
    assert found.tolist() == [[b"0.500000:1:dog", b"0.500000:2", b"0.250000:0:cat"]]


def test_more_classes_than_there_are(classifier: Classifier) -> None:
    assert classifier.run("echo", np.repeat(ROW, 2, 0), 1000).shape == (2, 4)


def test_more_elements_than_are_sorted_at_once(classifier: Classifier) -> None:
    values = np.arange(100_000, dtype=np.float32).reshape(1, -1)
    assert classifier.run("echo", values, 1).tolist() == [[b"99999.000000:99999"]]


def test_a_stream_gives_classes(server: ServerProcess) -> None:
    answers: list[Any] = []
    tensor = tritonclient.grpc.InferInput("x", list(ROW.shape), "FP32").set_data_from_numpy(ROW)
    asked = tritonclient.grpc.InferRequestedOutput("y", class_count=1)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        client.async_stream_infer("echo", [tensor], outputs=[asked])
        client.stop_stream()
    assert answers[0].as_numpy("y").tolist() == [[b"0.500000:1:dog"]]


def test_classes_as_json(server: ServerProcess) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW.tolist()}
    outputs = [{"name": "y", "parameters": {"classification": 2}}]
    document = {"inputs": [tensor], "outputs": outputs}
    reply = server.post("/v2/models/echo/infer", document)
    assert reply.json()["outputs"] == [
        {
            "name": "y",
            "datatype": "BYTES",
            "shape": [1, 2],
            "data": ["0.500000:1:dog", "0.500000:2"],
        }
    ]


def test_what_has_no_classes(classifier: Classifier) -> None:
    with pytest.raises(InferenceServerException, match="output 'y' is BOOL") as caught:
        classifier.run("flag", np.array([[True]]), 1)
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_new_labels_come_with_a_reload(server: ServerProcess, repository: Path) -> None:
    names = repository / "echo" / "names.txt"
    old = names.read_bytes()
    with tritonclient.http.InferenceServerClient(server.http) as client:
        best = Classifier(tritonclient.http, client)
        graphs.write_whole(names, b"bird\nfish\n")
        assert best.run("echo", ROW, 1).tolist() == [[b"0.500000:1:dog"]]
        client.load_model("echo")
        assert best.run("echo", ROW, 1).tolist() == [[b"0.500000:1:fish"]]
        graphs.write_whole(names, old)
        client.load_model("echo")
        assert best.run("echo", ROW, 1).tolist() == [[b"0.500000:1:dog"]]

"""What the cases share: one server with all kinds of models, and each case run by every client.

A case of a method is the test `test_<method>`. It runs once for each client that has the method,
and fails if it does not call it. Other tests run for all four clients, if they take one.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests.e2e import graphs, tell
from tests.e2e.clients.kinds import Api, connect, kinds_of, methods
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, serving
from tests.e2e.tensors import Array
from tests.e2e.test_generate import REPEAT

REAL = ("magika", "ppocr_det", "ppocr_rec", "silero_vad")
"""The example models that have weights."""

Sessions = Callable[[str], onnxruntime.InferenceSession]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One run for each client that has the method that the test is named after."""
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "kind" in metafunc.fixturenames and "kind" not in chosen:
        metafunc.parametrize("kind", kinds_of(metafunc.function.__name__))


@pytest.fixture(scope="session")
def models(
    example_repository: Path, client_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The example models, those of `client_repository`, `tell` and `tell_many` (decoupled), and
    `repeat`."""
    folder = tmp_path_factory.mktemp("models")
    for path in [*(example_repository / name for name in REAL), *client_repository.iterdir()]:
        (folder / path.name).symlink_to(path)
    graphs.write_model(folder, "tell", config=tell.config())
    graphs.write_model(folder, "tell_many", config=tell.config(decoupled=True))
    graphs.write_model(folder, "repeat", config=REPEAT)
    return folder


@pytest.fixture(scope="session")
def server(
    models: Path, plugin: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """In mode explicit with all models loaded; clients may register shared memory, and some of
    their headers reach the models."""
    forward = "^(authorization|x-test)"
    flags = (
        *EXPLICIT_ALL,
        "--allow-client-shm=true",
        f"--http-header-forward-pattern={forward}",
        f"--grpc-header-forward-pattern={forward}",
    )
    with serving(tmp_path_factory.mktemp("server"), models, flags=flags, env=plugin) as server:
        yield server


@pytest.fixture
async def api(
    request: pytest.FixtureRequest, kind: str, server: ServerProcess
) -> AsyncIterator[Api]:
    """A fresh client."""
    api = connect(kind, server)
    yield api
    await api.close()
    method = request.function.__name__.removeprefix("test_")
    assert method in api.called or method not in methods(kind), f"never called {method}"


@pytest.fixture(scope="session")
def sessions(models: Path) -> Sessions:
    """onnxruntime itself, on the same files."""
    opened: dict[str, onnxruntime.InferenceSession] = {}

    def session(model: str) -> onnxruntime.InferenceSession:
        if model not in opened:
            path = models / model / "1" / "model.onnx"
            opened[model] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return opened[model]

    return session


def random_inputs(model: str) -> dict[str, Array]:
    """Fresh inputs of a model, of a size that it has not been asked before."""
    random = np.random.default_rng()
    batch = int(random.integers(1, 4))
    match model:
        case "magika":
            return {"bytes": random.integers(0, 257, (batch, 2048), np.int32)}
        case "ppocr_det":
            return {"x": random.uniform(-1, 1, (batch, 3, 64, 96)).astype(np.float32)}
        case "ppocr_rec":
            width = 8 * int(random.integers(5, 20))
            return {"x": random.uniform(-1, 1, (batch, 3, 48, width)).astype(np.float32)}
        case _:
            return {
                "input": random.uniform(-1, 1, (batch, 576)).astype(np.float32),
                "state": random.uniform(-1, 1, (2, batch, 128)).astype(np.float32),
                "sr": np.array([16000], np.int64),
            }

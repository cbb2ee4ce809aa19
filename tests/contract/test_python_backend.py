"""Models in Python pass the suite that we ask of every backend, in processes and on threads."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from naiad_backends.api import Array, Backend, ModelSpec, Request, Tensor, TensorSpec
from naiad_backends.conformance import BackendSuite
from naiad_backends.python.backend import PythonBackend
from naiad_backends.services import Alone

MODEL = '''
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Twice each number, beside the words as they are and the sums of the rows."""

    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(4)
        config.add_input({"name": "number", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_input({"name": "word", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_output({"name": "twice", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "same", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_output({"name": "sum", "data_type": "TYPE_FP32", "dims": [1]})
        return config

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        number = pb_utils.get_input_tensor_by_name(request, "number").as_numpy()
        word = pb_utils.get_input_tensor_by_name(request, "word").as_numpy()
        if np.isnan(number).any():
            error = pb_utils.TritonError("not a number", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        outputs = {"twice": 2 * number, "same": word, "sum": number.sum(1, keepdims=True)}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        )
'''


class TestPython(BackendSuite):
    """In a process for each instance."""

    execution = "process"
    services: Alone

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _services(cls) -> Iterator[None]:
        cls.services = Alone()
        yield
        loop = cls.services.loop
        loop.call_soon_threadsafe(loop.stop)
        while loop.is_running():
            time.sleep(0.001)
        loop.close()

    def backend(self) -> Backend:
        backend = PythonBackend({})
        backend.attach(self.services)
        return backend

    def spec(self, folder: Path) -> ModelSpec:
        version = folder / "1"
        version.mkdir()
        (version / "model.py").write_text(MODEL)
        return ModelSpec(
            "model",
            1,
            version,
            max_batch_size=4,
            inputs=(TensorSpec("number", "FP32", (-1,)), TensorSpec("word", "BYTES", (1,))),
            outputs=(
                TensorSpec("twice", "FP32", (-1,)),
                TensorSpec("same", "BYTES", (1,)),
                TensorSpec("sum", "FP32", (1,)),
            ),
            parameters={"EXECUTION": self.execution},
        )

    def requests(self) -> list[Request]:
        """The last one is too large for a message."""
        random = np.random.default_rng(0)
        return [
            request(random.random((rows, width), np.float32), b"\xff\0" * rows)
            for rows, width in ((1, 2), (2, 3), (1, 0), (3, 20_000))
        ]

    def expected(self, request: Request) -> dict[str, Array]:
        number, word = (request.inputs[name].numpy() for name in ("number", "word"))
        return {"twice": 2 * number, "same": word, "sum": number.sum(1, keepdims=True)}

    def kept_output(self) -> str:
        return "sum"

    def bad_request(self) -> Request:
        return request(np.full((1, 2), np.nan, np.float32), b"")

    def bad_parameters(self) -> dict[str, str]:
        return {"EXECUTION": "elsewhere"}


class TestPythonOnThreads(TestPython):
    """In this process."""

    execution = "thread"


def request(number: Array, word: bytes) -> Request:
    words = np.empty((len(number), 1), object)
    words[:] = word
    inputs = [Tensor.from_numpy("number", number), Tensor.from_numpy("word", words)]
    return Request("model", inputs={tensor.name: tensor for tensor in inputs})

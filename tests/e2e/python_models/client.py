"""tritonclient over both protocols with one face, and models that are loaded on demand."""

import contextlib
import json
import queue
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tests.e2e.process import ServerProcess, starting
from tests.e2e.tensors import Array
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Failed: Any = InferenceServerException


@contextlib.contextmanager
def serving_failures(
    folder: Path, *repositories: Path, flags: Sequence[str]
) -> Iterator[ServerProcess]:
    """As `serving`, but its log may have tracebacks: models fail."""
    with starting(folder, *repositories, flags=flags) as server:
        server.wait_ready()
        yield server
        server.signal()
        assert server.wait() == 0, server.log()


class Models:
    """Of one server in mode explicit."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self._loaded: set[str] = set()

    def get(self, name: str, kind: str = "process", *others: str) -> str:
        """The name of a model that is loaded now.

        kind: "thread" for its twin.  others: models that it needs.
        """
        name = f"{name}_thread" if kind == "thread" else name
        for one in (*others, name):
            if one not in self._loaded:
                reply = self.load(one)
                assert reply.status == 200, reply.body.decode()
                self._loaded.add(one)
        return name

    def load(self, name: str) -> Any:
        """Load a model; the server's reply."""
        return self.server.post(f"/v2/repository/models/{name}/load")

    def unload(self, name: str) -> None:
        """Take a model out of service."""
        assert self.server.post(f"/v2/repository/models/{name}/unload").status == 200
        self._loaded.discard(name)


class Client:
    """`http` or `grpc`."""

    def __init__(self, protocol: str, server: ServerProcess) -> None:
        self._module: Any = getattr(tritonclient, protocol)
        self._client = self._module.InferenceServerClient(getattr(server, protocol))
        self.protocol = protocol

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._client.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: list[str] | None = None,
        **options: Any,
    ) -> Any:
        """The client's own result."""
        tensors = []
        for name, array in inputs.items():
            datatype = np_to_triton_dtype(array.dtype)
            tensor = self._module.InferInput(name, list(array.shape), datatype)
            tensors.append(tensor.set_data_from_numpy(array))
        wanted = (
            None if outputs is None else [self._module.InferRequestedOutput(o) for o in outputs]
        )
        return self._client.infer(model, tensors, outputs=wanted, **options)

    def parameters(self, result: Any) -> dict[str, Any]:
        """Of a response."""
        answer = result.get_response()
        if self.protocol == "http":
            return dict(answer.get("parameters", {}))
        return {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in answer.parameters.items()
        }

    def names(self, result: Any) -> list[str]:
        """Of the outputs of a response."""
        answer = result.get_response()
        if self.protocol == "http":
            return [one["name"] for one in answer.get("outputs", [])]
        return [one.name for one in answer.outputs]


def told(result: Any, name: str = "told") -> list[Any]:
    """What a model says in JSON, each element of a BYTES output."""
    return [json.loads(text) for text in result.as_numpy(name).ravel()]


def status(error: Any) -> str:
    """400 or StatusCode.INVALID_ARGUMENT, as the client has it."""
    return str(error.status())


def stream(
    server: ServerProcess, model: str, inputs: Mapping[str, Array], **options: Any
) -> Iterator[Any]:
    """The results of one request over a gRPC stream, until the final one; a refusal is raised."""
    found: queue.Queue[Any] = queue.Queue()
    tensors = []
    for name, array in inputs.items():
        tensor = tritonclient.grpc.InferInput(
            name, list(array.shape), np_to_triton_dtype(array.dtype)
        )
        tensors.append(tensor.set_data_from_numpy(array))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: found.put((result, error)))
        client.async_stream_infer(model, tensors, enable_empty_final_response=True, **options)
        while True:
            result, error = found.get(timeout=30)
            if error is not None:
                raise error
            answer = result.get_response()
            if answer.outputs:
                yield result
            if answer.parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()


def number(value: int) -> Array:
    """A tensor of one INT32."""
    return np.array([value], np.int32)

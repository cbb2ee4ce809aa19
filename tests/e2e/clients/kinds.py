"""tritonclient's four clients behind one face, so that a case is written once for all of them.

Knows how each is called and how it gives its answers; knows nothing of what is asked.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tests.e2e.process import ServerProcess
from tests.e2e.tensors import Array
from tritonclient.utils import InferenceServerException

MODULES: Mapping[str, Any] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}

KINDS = tuple(MODULES)

DATATYPES = {"float32": "FP32", "int32": "INT32", "uint32": "UINT32", "int64": "INT64"}
"""v2's names of the datatypes that cases use without saying so."""


def methods(kind: str) -> set[str]:
    """The public methods of a kind of client, as this release of tritonclient has them."""
    client = MODULES[kind].InferenceServerClient
    return {name for name, _ in inspect.getmembers(client, callable) if not name.startswith("_")}


def kinds_of(test: str) -> list[str]:
    """The kinds of clients that run a test: for the case of a method those that have it."""
    method = test.removeprefix("test_")
    return [kind for kind in KINDS if method in methods(kind)] or list(KINDS)


@dataclass(frozen=True)
class Api:
    """One client of a server. called: the names of its methods that were called."""

    kind: str
    client: Any
    server: ServerProcess
    called: set[str] = field(default_factory=set)

    @property
    def module(self) -> Any:
        """The client's module, with the classes that go with it."""
        return MODULES[self.kind]

    @property
    def http(self) -> bool:
        """Whether it speaks HTTP."""
        return self.kind.startswith("http")

    async def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method. Messages of gRPC come as plain dicts, which lack what is 0, false or
        empty, and have 64-bit integers as strings."""
        self.called.add(method)
        function = getattr(self.client, method)
        if "as_json" in inspect.signature(function).parameters:
            options.setdefault("as_json", True)
        answer = function(*args, **options)
        return await answer if inspect.isawaitable(answer) else answer

    async def refused(self, status: int, code: str, method: str, *args: Any, **options: Any) -> str:
        """The error's text of a call that fails with this HTTP status or gRPC code."""
        with pytest.raises(InferenceServerException) as caught:
            await self.call(method, *args, **options)
        wanted = str(status) if self.http else f"StatusCode.{code}"
        assert caught.value.status() == wanted, caught.value.message()
        return str(caught.value.message())

    def tensor(self, name: str, values: Array, datatype: str = "", **form: Any) -> Any:
        """An input. form: `binary_data`, over HTTP."""
        kind = datatype or DATATYPES[values.dtype.name]
        tensor = self.module.InferInput(name, list(values.shape), kind)
        return tensor.set_data_from_numpy(values, **form)

    def output(self, name: str, **form: Any) -> Any:
        """An output to ask for."""
        return self.module.InferRequestedOutput(name, **form)

    async def infer(self, model: str, arrays: Mapping[str, Array], **options: Any) -> Any:
        """Run a model; the result."""
        inputs = [self.tensor(name, array) for name, array in arrays.items()]
        return await self.call("infer", model, inputs, **options)

    def head(self, result: Any) -> dict[str, Any]:
        """A result without its tensors' data: `id`, `model_name`, `model_version`, `parameters`
        as plain values, and `outputs` as name -> (datatype, shape)."""
        response = result.get_response()
        if self.http:
            known = {key: response.get(key, "") for key in ("id", "model_name", "model_version")}
            parameters = response.get("parameters", {})
            outputs = {o["name"]: (o["datatype"], o["shape"]) for o in response["outputs"]}
        else:
            known = {key: getattr(response, key) for key in ("id", "model_name", "model_version")}
            parameters = plain(response.parameters)
            outputs = {o.name: (o.datatype, list(o.shape)) for o in response.outputs}
        return {**known, "parameters": parameters, "outputs": outputs}

    async def close(self) -> None:
        """Close the client."""
        answer = self.client.close()
        if inspect.isawaitable(answer):
            await answer


def connect(kind: str, server: ServerProcess, **options: Any) -> Api:
    """A client of a server, with the options of its constructor."""
    address = server.http if kind.startswith("http") else server.grpc
    return Api(kind, MODULES[kind].InferenceServerClient(address, **options), server)


def plain(parameters: Any) -> dict[str, Any]:
    """The parameters of a gRPC message as plain values."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in parameters.items()
    }

"""Requests as the bytes that travel, and answers back to arrays, for each protocol.

Follows the KServe v2 protocol with Triton's binary tensor and shared memory extensions. Knows
nothing of sockets, nor of how a region comes to be.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson

from benchmarks.errors import BenchmarkError
from benchmarks.workloads import DATATYPES, Array, Tensor
from naiad_proto.grpc_service_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

SHARED = ("shm-http", "shm-grpc")
"""The protocols whose requests only say where in shared memory the tensors are."""
PROTOCOLS = ("http-json", "http-binary", "grpc", *SHARED)
HEADER_LENGTH = "Inference-Header-Content-Length"
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
GRPC_STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
GRPC_PREFIX = 5
"""Bytes before each gRPC message: compressed flag and length."""

_NONE: Mapping[str, int | bool] = MappingProxyType({})


@dataclass(frozen=True)
class Place:
    """A part of a registered region; offset and size in bytes."""

    region: str
    offset: int
    size: int

    def parameters(self) -> dict[str, str | int]:
        """As the parameters of a tensor say it."""
        return {
            "shared_memory_region": self.region,
            "shared_memory_offset": self.offset,
            "shared_memory_byte_size": self.size,
        }


@dataclass(frozen=True)
class Request:
    """A request without its transport: the same for every server of a protocol."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    """For gRPC the message with its five-byte prefix."""


def encode(
    protocol: str,
    model: str,
    inputs: tuple[Tensor, ...],
    output: str,
    parameters: Mapping[str, int | bool] = _NONE,
) -> Request:
    """A request for `output` of `model`; protocol is one of PROTOCOLS, but not of SHARED.

    parameters: of the request, such as those of a sequence.
    """
    if protocol == "grpc":
        return Request(GRPC_PATH, {}, _grpc_frame(model, inputs, output, parameters))
    path = f"/v2/models/{model}/infer"
    form = _http_json if protocol == "http-json" else _http_binary
    return form(path, inputs, output, {"parameters": parameters} if parameters else {})


def encode_shared(
    protocol: str,
    model: str,
    inputs: tuple[Tensor, ...],
    places: Mapping[str, Place],
    output: str,
    result: Place,
) -> Request:
    """A request for tensors that lie in shared memory; protocol is one of SHARED.

    places: of the inputs, by name.  result: where the output is to go.
    """
    if protocol == "shm-http":
        described = [{**_described(t), "parameters": places[t.name].parameters()} for t in inputs]
        asked = [{"name": output, "parameters": result.parameters()}]
        body = orjson.dumps({"inputs": described, "outputs": asked})
        return Request(f"/v2/models/{model}/infer", {"Content-Type": "application/json"}, body)
    message = ModelInferRequest(model_name=model)
    for tensor in inputs:
        added = message.inputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape
        )
        _place(added.parameters, places[tensor.name])
    _place(message.outputs.add(name=output).parameters, result)
    return Request(GRPC_PATH, {}, _framed(message))


def _place(parameters: Any, place: Place) -> None:
    for name, value in place.parameters().items():
        if isinstance(value, str):
            parameters[name].string_param = value
        else:
            parameters[name].int64_param = value


def decode(protocol: str, output: str, headers: Mapping[str, str], body: bytes) -> Array:
    """The tensor `output` of an answer.

    headers: of the HTTP answer, names in lower case; not used for gRPC.
    body: for gRPC the message without its prefix.

    Raises BenchmarkError if the answer holds no such tensor.
    """
    if protocol == "grpc":
        return _grpc_output(output, ModelInferResponse.FromString(body))
    return _http_tensor(output, body, int(headers.get(HEADER_LENGTH.lower(), len(body))))


def decode_part(output: str, message: bytes) -> Array:
    """The tensor `output` of one response of a gRPC stream, without the prefix of its message.

    Raises BenchmarkError if the response is an error or holds no such tensor.
    """
    part = ModelStreamInferResponse.FromString(message)
    if part.error_message:
        raise BenchmarkError(f"gRPC stream: {part.error_message}")
    return _grpc_output(output, part.infer_response)


def _http_json(
    path: str, inputs: tuple[Tensor, ...], output: str, head: dict[str, object]
) -> Request:
    described = [{**_described(t), "data": t.array.reshape(-1).tolist()} for t in inputs]
    body = orjson.dumps({**head, "inputs": described, "outputs": [{"name": output}]})
    return Request(path, {"Content-Type": "application/json"}, body)


def _http_binary(
    path: str, inputs: tuple[Tensor, ...], output: str, head: dict[str, object]
) -> Request:
    described = [
        {**_described(t), "parameters": {"binary_data_size": t.array.nbytes}} for t in inputs
    ]
    asked = [{"name": output, "parameters": {"binary_data": True}}]
    header = orjson.dumps({**head, "inputs": described, "outputs": asked})
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return Request(path, headers, b"".join([header, *(t.array.tobytes() for t in inputs)]))


def _described(tensor: Tensor) -> dict[str, object]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.array.shape),
    }


def _grpc_frame(
    model: str,
    inputs: tuple[Tensor, ...],
    output: str,
    parameters: Mapping[str, int | bool],
) -> bytes:
    request = ModelInferRequest(model_name=model)
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param"
        setattr(request.parameters[name], kind, value)
    request.outputs.add(name=output)
    for tensor in inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        request.raw_input_contents.append(tensor.array.tobytes())
    return _framed(request)


def _framed(request: ModelInferRequest) -> bytes:
    message = request.SerializeToString()
    return struct.pack(">BI", 0, len(message)) + message


def _http_tensor(output: str, body: bytes, header_length: int) -> Array:
    offset = header_length
    for found in orjson.loads(body[:header_length]).get("outputs", ()):
        size = found.get("parameters", {}).get("binary_data_size")
        if found["name"] == output:
            data = found["data"] if size is None else body[offset : offset + size]
            return _array(data, found["datatype"], found["shape"])
        offset += size or 0
    raise _no_output(output)


def _grpc_output(output: str, response: ModelInferResponse) -> Array:
    for found, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if found.name == output:
            return _array(raw, found.datatype, found.shape)
    raise _no_output(output)


def _array(data: Any, datatype: str, shape: Any) -> Array:
    dtype = DATATYPES[datatype]
    flat: Array = np.frombuffer(data, dtype) if isinstance(data, bytes) else np.array(data, dtype)
    return flat.reshape(tuple(shape))


def _no_output(output: str) -> BenchmarkError:
    return BenchmarkError(f"the answer has no output {output}")

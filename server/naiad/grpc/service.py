"""The calls of inference.GRPCInferenceService: decode, ask the data plane, encode.

All messages arrive and leave as bytes, so that what is no message gets our error and large tensors
need not pass through protobuf.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, TypeVar

from google.protobuf.message import Message

from naiad.core.dataplane import EXTENSIONS, DataPlane
from naiad.core.forwarding import HeaderForwarding
from naiad.core.restriction import Restriction
from naiad.core.shared_memory import Lease
from naiad.core.trace import RequestTrace
from naiad.grpc import answers, convert, health, wire
from naiad.grpc.errors import known
from naiad.grpc.reflection import reflect
from naiad.grpc.regions import RegionCalls
from naiad.grpc.restriction import guarded_streaming, guarded_unary
from naiad.grpc.stream import (
    Answer,
    Answers,
    Caller,
    InferStream,
    Metadata,
    Streaming,
    Unary,
)
from naiad.repository.override import field_of
from naiad_backends.api import Buffer, Request
from naiad_backends.errors import NaiadError, invalid, unsupported
from naiad_proto import grpc_service_pb2 as pb
from naiad_proto.health import CHECK_METHOD, WATCH_METHOD
from naiad_proto.reflection import METHODS as REFLECTION_METHODS

M = TypeVar("M", bound=Message)

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_STREAM: Final = "ModelStreamInfer"
_FAIL_FAST: Final = ("triton_grpc_error", "true")


class InferenceService:
    """The handlers of one server, and the calls of its that are open.

    unary, streaming: by path, such as `/inference.GRPCInferenceService/ModelInfer`. A handler
    raises NaiadError for what the client is to be told; a cancelled call cancels its handler.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        forward: HeaderForwarding | None = None,
        restriction: Restriction | None = None,
    ) -> None:
        """forward: which metadata of inference calls goes to the model.
        restriction: which calls need metadata, and which."""
        self._data_plane = data_plane
        self._forward = forward
        self._streams: set[InferStream] = set()
        self._health = health.HealthService(data_plane)
        regions = RegionCalls(data_plane.shared_memory)
        unary: dict[str, Unary] = {
            "ServerLive": _call(pb.ServerLiveRequest, self._live),
            "ServerReady": _call(pb.ServerReadyRequest, self._ready),
            "ModelReady": _call(pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": _call(pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": _call(pb.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": self._infer,
            "ModelConfig": _call(pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": _call(pb.ModelStatisticsRequest, self._model_statistics),
            "LogSettings": _call(pb.LogSettingsRequest, self._log_settings),
            "TraceSetting": _call(pb.TraceSettingRequest, self._trace_setting),
            "RepositoryIndex": _call(pb.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": _call(pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": _call(pb.RepositoryModelUnloadRequest, self._unload),
            "SystemSharedMemoryStatus": _call(pb.SystemSharedMemoryStatusRequest, regions.status),
            "SystemSharedMemoryRegister": _call(
                pb.SystemSharedMemoryRegisterRequest, regions.register
            ),
            "SystemSharedMemoryUnregister": _call(
                pb.SystemSharedMemoryUnregisterRequest, regions.unregister
            ),
            "CudaSharedMemoryStatus": _call(pb.CudaSharedMemoryStatusRequest, regions.cuda_status),
            "CudaSharedMemoryRegister": _call(
                pb.CudaSharedMemoryRegisterRequest, regions.register_cuda
            ),
            "CudaSharedMemoryUnregister": _call(
                pb.CudaSharedMemoryUnregisterRequest, regions.unregister_cuda
            ),
        }
        self.unary = {_path(name): call for name, call in unary.items()} | {
            CHECK_METHOD: self._health.check
        }
        self.streaming: dict[str, Streaming] = {
            _path(_STREAM): self._stream_infer,
            WATCH_METHOD: self._health.watch,
            **dict.fromkeys(REFLECTION_METHODS, reflect),
        }
        if restriction is not None:
            self.unary = guarded_unary(self.unary, restriction)
            self.streaming = guarded_streaming(self.streaming, restriction)

    def close(self) -> None:
        """Let the calls that have no end of their own end: streams once they have answered."""
        self._health.close()
        for stream in self._streams:
            stream.close()

    # -- inference

    async def _infer(self, data: Buffer, caller: Metadata) -> Sequence[Buffer]:
        read = time.perf_counter_ns() if caller.came else 0
        message, raw = wire.read_request(data)
        with self._data_plane.shared_memory.lease() as lease:
            request = convert.to_request(message, raw, lease=lease)
            if lease.unread:
                await lease.read()
            if self._forward is not None:
                self._forward(request, caller.invocation_metadata() or ())
            if read:
                caller.trace = self._trace(request, caller.came, read)
            try:
                response = await self._data_plane.infer(request)
                parts = convert.from_response(request.id, response, lease)
                if lease.unwritten:
                    await lease.write()
                return parts
            finally:
                if caller.trace is not None:
                    caller.trace.mark("GRPC_SEND_START")

    def _trace(self, request: Request, came: int, read: int) -> RequestTrace | None:
        trace = self._data_plane.trace(request)
        if trace is not None:
            trace.mark("GRPC_WAITREAD_START", came)
            trace.mark("GRPC_WAITREAD_END", read)
        return trace

    async def _stream_infer(self, requests: AsyncIterator[Buffer], caller: Caller) -> None:
        fail_fast = _FAIL_FAST in map(tuple, caller.invocation_metadata() or ())
        stream = InferStream(requests, caller, partial(self._answers, caller), fail_fast)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    def _answers(self, caller: Caller, data: Buffer) -> tuple[bool, Answers]:
        """Begin one request of a stream; what goes wrong is an answer, too."""
        read = time.perf_counter_ns() if self._data_plane.tracing.on else 0
        message = pb.ModelInferRequest()
        lease = self._data_plane.shared_memory.lease()
        try:
            message, raw = wire.read_request(data)
            request = convert.to_request(message, raw, stream=True, lease=lease)
            if self._forward is not None:
                self._forward(request, caller.invocation_metadata() or ())
            spec = self._data_plane.spec(request.model_name, request.model_version)
        except Exception as error:
            lease.end()
            return True, _refused(message, error)
        return not spec.decoupled, self._run(message, request, lease, read)

    async def _run(
        self, message: pb.ModelInferRequest, request: Request, lease: Lease, read: int
    ) -> Answers:
        """read: when the message was there, 0 while nothing is traced."""
        trace = None
        try:
            if lease.unread:
                await lease.read()
            if read:
                trace = self._trace(request, read, read)
            async with aclosing(self._data_plane.stream(request)) as parts:
                async for part in parts:
                    if part.response is not None:
                        answer = convert.from_stream_response(
                            request.id, part.response, part.final, lease
                        )
                        if lease.unwritten:
                            await lease.write()
                        yield _answer(answer, trace)
                    elif convert.wants_empty_final(message):
                        yield _answer(convert.empty_final(message), trace)
        except Exception as error:
            reason = known(error)
            yield _answer(convert.from_stream_error(message, reason), trace, reason)
        finally:
            lease.end()
            if trace is not None:
                trace.release()

    # -- health and metadata

    async def _live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._data_plane.live())

    async def _ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=await self._data_plane.ready())

    async def _model_ready(self, message: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(
            ready=await self._data_plane.model_ready(message.name, message.version)
        )

    async def _server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=self._data_plane.name, version=self._data_plane.version, extensions=EXTENSIONS
        )

    async def _model_metadata(self, message: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        return answers.metadata(self._data_plane.model_metadata(message.name, message.version))

    async def _model_config(self, message: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        config = self._data_plane.model_config(message.name, message.version)
        return pb.ModelConfigResponse(config=config.message())

    async def _model_statistics(
        self, message: pb.ModelStatisticsRequest
    ) -> pb.ModelStatisticsResponse:
        return answers.statistics(self._data_plane.statistics(message.name, message.version))

    async def _log_settings(self, message: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        log = self._data_plane.log
        log.update({name: convert.log_setting(value) for name, value in message.settings.items()})
        return answers.log_settings(log.settings)

    async def _trace_setting(self, message: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        changes = {name: list(given.value) for name, given in message.settings.items()}
        return answers.trace_settings(self._data_plane.update_trace(changes, message.model_name))

    # -- repository

    async def _index(self, message: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        return answers.index(await self._data_plane.index(message.ready, message.repository_name))

    async def _load(self, message: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        _refuse_repository(message.repository_name)
        parameters = {name: _value(value) for name, value in message.parameters.items()}
        await self._data_plane.load(message.model_name, parameters)
        return pb.RepositoryModelLoadResponse()

    async def _unload(
        self, message: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        _refuse_repository(message.repository_name)
        dependents = _dependents(message.parameters)
        await self._data_plane.unload(message.model_name, dependents=dependents)
        return pb.RepositoryModelUnloadResponse()


def _refuse_repository(name: str) -> None:
    if name:
        raise unsupported(
            "a model is loaded and unloaded without naming its repository",
            field="repository_name",
            hint="leave it empty: all repositories are meant",
        )


def _value(parameter: pb.ModelRepositoryParameter) -> object:
    """What it holds; None for nothing."""
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _dependents(parameters: Mapping[str, pb.ModelRepositoryParameter]) -> bool:
    """Whether an unload is of the models of an ensemble's steps, too."""
    dependents = False
    for name, parameter in parameters.items():
        if name != "unload_dependents":
            raise invalid("unknown parameter", field=field_of(name), hint="use unload_dependents")
        value = _value(parameter)
        if not isinstance(value, bool):
            raise invalid("must be true or false", field=field_of(name))
        dependents = value
    return dependents


def _answer(
    message: Sequence[Buffer], trace: RequestTrace | None, error: NaiadError | None = None
) -> Answer:
    if trace is not None:
        trace.mark("GRPC_SEND_START")
    return Answer(message, error, trace)


async def _refused(message: pb.ModelInferRequest, error: Exception) -> Answers:
    reason = known(error)
    yield Answer(convert.from_stream_error(message, reason), reason)


def _path(name: str) -> str:
    return f"/{_SERVICE.full_name}/{name}"


INFERENCE: Final = frozenset((_path("ModelInfer"), _path(_STREAM)))
"""The paths of the calls that run models."""


def _call(kind: type[M], answer: Callable[[M], Awaitable[Message]]) -> Unary:
    """A call on messages as a call on bytes."""

    async def run(data: Buffer, _: Metadata) -> Sequence[Buffer]:
        return ((await answer(wire.parse(kind, data))).SerializeToString(),)

    return run

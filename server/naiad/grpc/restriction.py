"""To which part of the protocol each gRPC method belongs, and handlers that ask for its metadata.

Source: the categories of Triton's `--grpc-restricted-protocol`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from naiad.core.restriction import Api, Restriction
from naiad.grpc.stream import Caller, Metadata, Streaming, Unary
from naiad_backends.api import Buffer
from naiad_proto import grpc_service_pb2 as pb
from naiad_proto.health import CHECK_METHOD, WATCH_METHOD
from naiad_proto.reflection import METHODS as REFLECTION_METHODS

PREFIX: Final = "triton-grpc-protocol-"
"""Stands in front of the name that the option gives."""

_METHODS: Final[Mapping[Api, Sequence[str]]] = {
    Api.HEALTH: ("ServerLive", "ServerReady", "ModelReady"),
    Api.METADATA: ("ServerMetadata", "ModelMetadata"),
    Api.INFERENCE: ("ModelInfer", "ModelStreamInfer"),
    Api.SHARED_MEMORY: (
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
    ),
    Api.MODEL_CONFIG: ("ModelConfig",),
    Api.MODEL_REPOSITORY: ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    Api.STATISTICS: ("ModelStatistics",),
    Api.TRACE: ("TraceSetting",),
    Api.LOGGING: ("LogSettings",),
}

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

API: Final[Mapping[str, Api]] = {
    **{f"/{_SERVICE}/{name}": api for api, names in _METHODS.items() for name in names},
    CHECK_METHOD: Api.HEALTH,
    WATCH_METHOD: Api.HEALTH,
    **dict.fromkeys(REFLECTION_METHODS, Api.METADATA),
}
"""The part of the protocol that each method belongs to, by its path."""


def guarded_unary(calls: Mapping[str, Unary], restriction: Restriction) -> dict[str, Unary]:
    """The same handlers by path; those of restricted parts ask for their metadata first."""
    return {
        path: _unary(call, API[path], restriction) if restriction.restricts(API[path]) else call
        for path, call in calls.items()
    }


def guarded_streaming(
    calls: Mapping[str, Streaming], restriction: Restriction
) -> dict[str, Streaming]:
    """The same for streams, which are refused when they open."""
    return {
        path: _stream(call, API[path], restriction) if restriction.restricts(API[path]) else call
        for path, call in calls.items()
    }


def _unary(call: Unary, api: Api, restriction: Restriction) -> Unary:
    async def run(data: Buffer, caller: Metadata) -> Sequence[Buffer]:
        restriction.require(api, caller.invocation_metadata() or ())
        return await call(data, caller)

    return run


def _stream(call: Streaming, api: Api, restriction: Restriction) -> Streaming:
    async def run(requests: AsyncIterator[Buffer], caller: Caller) -> None:
        restriction.require(api, caller.invocation_metadata() or ())
        await call(requests, caller)

    return run

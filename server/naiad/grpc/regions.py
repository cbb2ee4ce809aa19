"""The calls about shared memory regions: which there are, register, unregister.

Source: Triton's system and CUDA shared memory extensions.
"""

from naiad.core.shared_memory import SharedMemory
from naiad_proto import grpc_service_pb2 as pb

_SystemStatus = pb.SystemSharedMemoryStatusResponse
_SystemRegistered = pb.SystemSharedMemoryRegisterResponse
_SystemUnregistered = pb.SystemSharedMemoryUnregisterResponse
_CudaStatus = pb.CudaSharedMemoryStatusResponse
_CudaRegistered = pb.CudaSharedMemoryRegisterResponse
_CudaUnregistered = pb.CudaSharedMemoryUnregisterResponse


class RegionCalls:
    """One method for each call; they raise what `SharedMemory` raises."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    async def status(self, message: pb.SystemSharedMemoryStatusRequest) -> _SystemStatus:
        """SystemSharedMemoryStatus: one region, or all."""
        return _SystemStatus(
            regions={
                region.name: _SystemStatus.RegionStatus(
                    name=region.name,
                    key=region.key,
                    offset=region.offset,
                    byte_size=region.size,
                )
                for region in self._memory.status(message.name)
            }
        )

    async def register(self, message: pb.SystemSharedMemoryRegisterRequest) -> _SystemRegistered:
        """SystemSharedMemoryRegister."""
        await self._memory.register(message.name, message.key, message.offset, message.byte_size)
        return _SystemRegistered()

    async def unregister(
        self, message: pb.SystemSharedMemoryUnregisterRequest
    ) -> _SystemUnregistered:
        """SystemSharedMemoryUnregister: one region, or all."""
        self._memory.unregister(message.name)
        return _SystemUnregistered()

    async def cuda_status(self, message: pb.CudaSharedMemoryStatusRequest) -> _CudaStatus:
        """CudaSharedMemoryStatus: there are none."""
        self._memory.cuda_status(message.name)
        return _CudaStatus()

    async def register_cuda(self, message: pb.CudaSharedMemoryRegisterRequest) -> _CudaRegistered:
        """CudaSharedMemoryRegister: refused."""
        self._memory.register_cuda(message.name)
        return _CudaRegistered()

    async def unregister_cuda(
        self, message: pb.CudaSharedMemoryUnregisterRequest
    ) -> _CudaUnregistered:
        """CudaSharedMemoryUnregister: there is nothing to do."""
        self._memory.unregister_cuda()
        return _CudaUnregistered()

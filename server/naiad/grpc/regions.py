"""The calls about shared memory regions: which there are, register, unregister.

Source: Triton's system and CUDA shared memory extensions.
"""

from naiad.core.cuda_memory import CudaRegion
from naiad.core.shared_memory import SharedMemory
from naiad.core.system_memory import SystemRegion
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
                for region in self._memory.status(SystemRegion, message.name)
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
        self._memory.unregister(SystemRegion, message.name)
        return _SystemUnregistered()

    async def cuda_status(self, message: pb.CudaSharedMemoryStatusRequest) -> _CudaStatus:
        """CudaSharedMemoryStatus: one region, or all."""
        return _CudaStatus(
            regions={
                region.name: _CudaStatus.RegionStatus(
                    name=region.name, device_id=region.device, byte_size=region.size
                )
                for region in self._memory.status(CudaRegion, message.name)
            }
        )

    async def register_cuda(self, message: pb.CudaSharedMemoryRegisterRequest) -> _CudaRegistered:
        """CudaSharedMemoryRegister."""
        await self._memory.register_cuda(
            message.name, message.raw_handle, message.device_id, message.byte_size
        )
        return _CudaRegistered()

    async def unregister_cuda(
        self, message: pb.CudaSharedMemoryUnregisterRequest
    ) -> _CudaUnregistered:
        """CudaSharedMemoryUnregister: one region, or all."""
        self._memory.unregister(CudaRegion, message.name)
        return _CudaUnregistered()

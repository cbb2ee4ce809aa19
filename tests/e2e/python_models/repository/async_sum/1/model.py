"""Async, not decoupled; tasks and an async client of sorts."""

import asyncio
import sys

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        return await asyncio.gather(*[self.one(request) for request in requests])

    async def one(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        await asyncio.sleep(0.001)
        if (x == 99).any():
            sys.exit(5)
        if (x == 13).any():
            raise ValueError("thirteen")
        y = await asyncio.get_running_loop().run_in_executor(None, lambda: x.sum(1, x.dtype))
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y[:, None])])

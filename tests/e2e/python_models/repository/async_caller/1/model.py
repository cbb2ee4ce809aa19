"""Calls several models at once and adds up what they give, also that of a decoupled one."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        return [await self.one(request) for request in requests]

    async def one(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        calls = [
            pb_utils.InferenceRequest(
                model_name="doubler",
                requested_output_names=["y"],
                inputs=[pb_utils.Tensor("x", x + number)],
            ).async_exec()
            for number in range(5)
        ]
        squares = pb_utils.InferenceRequest(
            model_name="square",
            requested_output_names=["OUT"],
            inputs=[pb_utils.Tensor("IN", np.array([3], np.int32))],
        ).async_exec(decoupled=True)
        *answers, responses = await asyncio.gather(*calls, squares)
        total = sum(answer.output_tensors()[0].as_numpy() for answer in answers)
        for response in responses:
            if response.output_tensors():
                total = total + response.output_tensors()[0].as_numpy()[0].astype(np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", total)])

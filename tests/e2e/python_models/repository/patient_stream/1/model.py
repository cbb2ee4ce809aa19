"""The same with many responses, and async: sends until its client has left."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        for request in requests:
            path = request.inputs()[0].as_numpy()[0].decode()
            sender = request.get_response_sender()
            number = 0
            while not sender.is_cancelled():
                y = pb_utils.Tensor("y", np.array([number], np.int32))
                sender.send(pb_utils.InferenceResponse([y]))
                number += 1
                await asyncio.sleep(0.005)
            with open(path, "w") as file:
                print(f"request {request.is_cancelled()}, sender True", file=file)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

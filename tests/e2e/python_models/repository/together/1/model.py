"""Async and decoupled: each request waits until so many of them are there as its input says, then
all are answered. So it works only if requests run beside each other."""

import asyncio
import json

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        self.here = 0
        self.all = asyncio.Event()

    async def execute(self, requests):
        await asyncio.gather(*[self.one(request) for request in requests])

    async def one(self, request):
        parameters = json.loads(request.parameters())
        value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        sender = request.get_response_sender()
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
        if "end" in parameters:
            await asyncio.sleep(0)
            raise RuntimeError(parameters["end"])
        self.here += 1
        if self.here >= int(value[0]):
            self.all.set()
        await self.all.wait()
        for _ in range(3):
            await asyncio.sleep(0)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
        sender.send(flags=FINAL)

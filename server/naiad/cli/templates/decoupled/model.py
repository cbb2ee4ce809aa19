"""A model in Python with many responses to a request: it counts, with pauses.

Files that the model needs (weights, tables, Python files to import) lie beside this one or in the
model's folder. A change of this file counts when the model is loaded again.
"""

import asyncio
import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One object for each instance. Only execute is needed."""

    def initialize(self, args):
        """Get ready: load weights, warm up. An exception fails the load with its text.

        args: texts: model_name, model_version, model_config (JSON), model_repository (the model's
            folder), model_instance_name, model_instance_kind, model_instance_device_id.
        """
        self.folder = os.path.join(args["model_repository"], args["model_version"])
        config = json.loads(args["model_config"])
        self.pause = float(config["parameters"]["pause_seconds"]["string_value"])

    async def execute(self, requests):
        """Answer the requests by their senders, and return nothing.

        Others are begun while these wait in an await. With a plain `def` they come one after the
        other, unless it hands the senders to threads and returns.
        """
        await asyncio.gather(*(self.answer(request) for request in requests))

    async def answer(self, request):
        """Send the responses to one request. The last call says that it is the last."""
        sender = request.get_response_sender()
        count = int(pb_utils.get_input_tensor_by_name(request, "count").as_numpy()[0])
        if count < 0:
            error = pb_utils.TritonError("count is below 0", pb_utils.TritonError.INVALID_ARG)
            response = pb_utils.InferenceResponse(error=error)
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        for number in range(count):
            if request.is_cancelled():  # the client has left
                break
            tensor = pb_utils.Tensor("number", np.array([number], np.int32))
            sender.send(pb_utils.InferenceResponse([tensor]))
            await asyncio.sleep(self.pause)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        """Give back what initialize took. Called once, when the model is unloaded."""

"""Async and decoupled, and calls other models."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            tensors = request.inputs()
            for _ in range(3):
                inner = pb_utils.InferenceRequest(
                    model_name="doubler",
                    requested_output_names=["y"],
                    inputs=[pb_utils.Tensor("x", tensors[0].as_numpy())],
                )
                response = await inner.async_exec()
                tensors = response.output_tensors()
                sender.send(pb_utils.InferenceResponse(tensors))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

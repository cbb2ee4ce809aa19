"""All that a model can ask a request, as JSON; the request's parameters come back as the
response's."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        told = {
            "id": request.request_id(),
            "correlation_id": request.correlation_id(),
            "flags": request.flags(),
            "timeout": request.timeout(),
            "outputs": request.requested_output_names(),
            "parameters": json.loads(request.parameters()),
            "trace": request.trace().get_context(),
            "cancelled": request.is_cancelled(),
        }
        parameters = {k: v for k, v in told["parameters"].items() if not isinstance(v, float)}
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("told", np.array([json.dumps(told)], dtype=object)),
                pb_utils.Tensor("other", np.array([7], np.int32)),
            ],
            parameters=parameters,
        )

"""Sums of sequences, in a state that the server keeps; says what the controls were."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        def get(name):
            return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

        total = get("before") + get("x")
        controls = {name: get(name).item() for name in ("START", "END", "READY", "CORRID")}
        controls["correlation_id"] = request.correlation_id()
        controls["flags"] = request.flags()
        controls["outputs"] = request.requested_output_names()
        text = np.array([[json.dumps(controls)]], dtype=object)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("sum", total),
                pb_utils.Tensor("after", total),
                pb_utils.Tensor("controls", text),
            ]
        )

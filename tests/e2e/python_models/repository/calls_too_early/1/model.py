"""Calls another model in initialize, which is not allowed."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        pb_utils.InferenceRequest(
            model_name="doubler",
            requested_output_names=["y"],
            inputs=[pb_utils.Tensor("x", np.zeros(1, np.float32))],
        ).exec()

    def execute(self, requests):
        return []

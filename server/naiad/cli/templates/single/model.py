"""A model in Python: y is x times a number that the configuration gives.

Files that the model needs (weights, tables, Python files to import) lie beside this one or in the
model's folder. A change of this file counts when the model is loaded again.
"""

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
        self.scale = np.float32(config["parameters"]["scale"]["string_value"])

    def execute(self, requests):
        """Answer all requests of a batch: a list with one response for each, in their order.

        Each request may have several rows itself: x has the shape [rows, n]. A framework that
        gains by larger batches gets them by np.concatenate over the requests.
        An exception here fails all the requests.
        """
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """The response to one request, which may also be an error of that one alone."""
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if not np.isfinite(x).all():
            error = pb_utils.TritonError("x must be finite", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        y = x * self.scale
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])

    def finalize(self):
        """Give back what initialize took. Called once, when the model is unloaded."""

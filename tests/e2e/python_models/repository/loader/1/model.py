"""Loads and unloads other models: the input is a function of pb_utils and its arguments, as JSON.
Bytes are given as Latin-1."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        what, arguments = json.loads(request.inputs()[0].as_numpy()[0])
        if "files" in arguments:
            files = {path: text.encode("latin-1") for path, text in arguments["files"].items()}
            arguments["files"] = files
        try:
            result = getattr(pb_utils, what)(**arguments)
        except pb_utils.TritonModelException as error:
            result = str(error)
        told = np.array([json.dumps(result)], dtype=object)
        return pb_utils.InferenceResponse([pb_utils.Tensor("told", told)])

"""Does what the request's parameter `do` says, which is mostly wrong."""

import json
import os
import sys

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        (request,) = requests
        what = json.loads(request.parameters()).get("do", "well")
        if what.startswith("error "):
            code = getattr(pb_utils.TritonError, what.removeprefix("error "))
            return [self.failed(pb_utils.TritonError("as told: \u00fc\u4f60", code))]
        return getattr(self, what)(request)

    def failed(self, error):
        return pb_utils.InferenceResponse(error=error)

    def y(self, array):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array)])]

    def well(self, request):
        return self.y(request.inputs()[0].as_numpy())

    def default_code(self, request):
        return [self.failed(pb_utils.TritonError("no code"))]

    def raises(self, request):
        raise ValueError("na\u00efve \U0001f30a")

    def raises_model_exception(self, request):
        raise pb_utils.TritonModelException("the author says so")

    def returns_none(self, request):
        return None

    def returns_text(self, request):
        return "text"

    def returns_response(self, request):
        return self.well(request)[0]

    def returns_too_many(self, request):
        return self.well(request) * 2

    def returns_too_few(self, request):
        return []

    def holds_none(self, request):
        return [None]

    def holds_text(self, request):
        return ["text"]

    def holds_array(self, request):
        return [pb_utils.InferenceResponse([np.zeros(1)])]

    def unknown_output(self, request):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("z", np.zeros(1, np.float32))])]

    def wrong_type(self, request):
        return self.y(np.zeros(2, np.int64))

    def wrong_shape(self, request):
        return self.y(np.zeros((2, 2), np.float32))

    def complex_numbers(self, request):
        return self.y(np.zeros(1, np.complex64))

    def no_outputs(self, request):
        return [pb_utils.InferenceResponse([])]

    def sys_exit(self, request):
        sys.exit(3)

    def os_exit(self, request):
        os._exit(4)

    def recurses(self, request):
        return self.recurses(request)

    def floods(self, request):
        for number in range(2000):
            print(f"line {number} " + "x" * 100)
        return self.well(request)

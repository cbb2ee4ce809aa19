"""Runs each request as often as it says, one step per execution; answers the flags of all runs."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.runs = {}

    def execute(self, requests):
        return [self.step(request) for request in requests]

    def step(self, request):
        steps = int(pb_utils.get_input_tensor_by_name(request, "steps").as_numpy()[0])
        flags = self.runs.setdefault(request.correlation_id(), [])
        flags.append(request.flags())
        if len(flags) < steps:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        del self.runs[request.correlation_id()]
        return pb_utils.InferenceResponse([pb_utils.Tensor("flags", np.array(flags, np.int32))])

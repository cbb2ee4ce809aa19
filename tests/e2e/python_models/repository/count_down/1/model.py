"""Counts down to 1, a response and an execution for each number: many requests take turns."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.left = {}

    def execute(self, requests):
        for request in requests:
            id = request.correlation_id()
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            left = self.left.pop(id, int(value[0]))
            sender = request.get_response_sender()
            out = pb_utils.Tensor("OUT", np.array([left], np.int32))
            if left > 1:
                self.left[id] = left - 1
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                sender.send(pb_utils.InferenceResponse([out]))
            else:
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                sender.send(pb_utils.InferenceResponse([out]), flags=flags)
        return None

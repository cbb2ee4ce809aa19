"""The same without threads; and what a decoupled model must not do."""

import json

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            end = json.loads(request.parameters()).get("end", "flag")
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            sender = request.get_response_sender()
            for _ in range(int(value[0])):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
            if end == "raise":
                raise RuntimeError("in the middle")
            if end == "return":
                return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)])]
            if end == "flag":
                sender.send(flags=FINAL)
        return None

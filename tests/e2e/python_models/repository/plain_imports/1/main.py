"""A file of another name, and helpers that are imported without a dot: one of this version, one of
the model's folder."""

import c_python_backend_utils as c_utils
import plain_factor
import plain_offset
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            assert isinstance(request, c_utils.InferenceRequest)
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = x * plain_factor.FACTOR + plain_offset.OFFSET
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses

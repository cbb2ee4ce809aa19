"""An embedding model: how many tokens, of a text its letters, and a number that is not round."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tokens = pb_utils.get_input_tensor_by_name(request, "input_ids")
        if tokens is None:
            tokens = pb_utils.get_input_tensor_by_name(request, "text")
            tokens = list(tokens.as_numpy()[0, 0].decode())
        else:
            tokens = tokens.as_numpy()[0].tolist()
        vector = np.array([[len(tokens), 0.1, -1, 0]], np.float32)
        count = np.array([[len(tokens)]], np.uint32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("embedding", vector), pb_utils.Tensor("num_input_tokens", count)]
        )

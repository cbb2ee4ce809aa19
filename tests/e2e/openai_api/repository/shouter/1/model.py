"""A model that is not decoupled and takes batches: the text in capitals. Instead of `parameters` it
says those of the request; at `wait` it waits until its client has left."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0, 0].decode()
        while text == "wait" and not request.is_cancelled():
            time.sleep(0.01)
        said = request.parameters() if text == "parameters" else text.upper()
        array = np.array([[said.encode()]], np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", array)])

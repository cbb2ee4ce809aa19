"""The least that a generator may have: a response for each word of the text."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0]
            for word in text.split():
                array = np.array([word + b"."], np.object_)
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("text_output", array)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

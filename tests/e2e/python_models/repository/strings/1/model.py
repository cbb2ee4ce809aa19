"""Texts in capitals, answered as each kind of array that stands for texts."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

MAKERS = {
    "str": lambda texts: np.array(texts, dtype=object),
    "bytes": lambda texts: np.array([t.encode("utf-8") for t in texts], dtype=object),
    "bytes_": lambda texts: np.array([t.encode("utf-8") for t in texts], dtype=np.bytes_),
    "unicode": lambda texts: np.array(texts),
}


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        form = json.loads(request.parameters())["form"]
        array = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        assert array.dtype == np.object_ and all(type(t) is bytes for t in array.ravel())
        texts = [t.decode("utf-8").upper() for t in array.ravel()]
        result = MAKERS[form](texts).reshape(array.shape)
        return pb_utils.InferenceResponse([pb_utils.Tensor("upper", result)])

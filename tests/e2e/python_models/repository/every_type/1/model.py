"""What was given of many optional inputs, each through what its type allows."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.copy(t) for t in r.inputs()]) for r in requests]

    def copy(self, tensor):
        name = tensor.name()
        kind = pb_utils.get_input_config_by_name(self.config, name)["data_type"]
        output = name.replace("IN_", "OUT_")
        assert tensor.is_cpu()
        if kind == "TYPE_BF16":
            return pb_utils.Tensor.from_dlpack(output, tensor.to_dlpack())
        array = tensor.as_numpy()
        assert list(array.shape) == tensor.shape()
        assert pb_utils.triton_string_to_numpy(kind) == array.dtype
        assert pb_utils.numpy_to_triton_type(array.dtype.type) == tensor.triton_dtype()
        return pb_utils.Tensor(output, np.flip(np.flip(array, 0).copy(), 0))

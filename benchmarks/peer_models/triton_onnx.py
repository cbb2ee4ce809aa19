"""Runs inside Triton's Python backend: one ONNX file, a batch gathered from all requests at hand.

The peer's binary has no ONNX backend, so this stands for it.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """`model.onnx` beside this file, on one thread."""

    def initialize(self, args):  # type: ignore[no-untyped-def]  # Triton's types are unknown here
        """Opens the file."""
        config = json.loads(args["model_config"])
        self.inputs = [each["name"] for each in config["input"]]
        self.output = config["output"][0]["name"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = Path(__file__).with_name("model.onnx")
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):  # type: ignore[no-untyped-def]
        """One response per request, in order."""
        feed = {}
        for name in self.inputs:
            tensors = [pb_utils.get_input_tensor_by_name(r, name).as_numpy() for r in requests]
            feed[name] = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        result = self.session.run([self.output], feed)[0]
        ends = np.cumsum([len(tensor) for tensor in tensors])
        parts = np.split(result, ends[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor(self.output, p)]) for p in parts]

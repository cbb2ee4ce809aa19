"""Which instance answers, and in which process. Waits until so many are at it as the input says:
they meet in files of the version's folder."""

import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_instance_name"]

    def execute(self, requests):
        responses = []
        for request in requests:
            folder = pb_utils.get_model_dir()
            with open(os.path.join(folder, f"{self.name}.here"), "w"):
                pass
            wanted = int(request.inputs()[0].as_numpy()[0])
            while sum(name.endswith(".here") for name in os.listdir(folder)) < wanted:
                time.sleep(0.002)
            name = pb_utils.Tensor("name", np.array([self.name], dtype=object))
            pid = pb_utils.Tensor("pid", np.array([os.getpid()], np.int64))
            responses.append(pb_utils.InferenceResponse([name, pid]))
        return responses

"""Where the model lies and what it is told at the beginning; imports and reads what lies beside."""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils

from .beside import SHAPE
from .parts import deep


class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "words.txt")) as file:
            words = file.read().split()
        assert os.path.samefile(folder, pb_utils.get_model_dir())
        self.found = {"words": words, "shape": SHAPE, "deep": deep.answer()}

    def execute(self, requests):
        texts = [json.dumps({"args": self.args, "found": self.found, "dir": self.folder()})]
        told = pb_utils.Tensor("told", np.array([texts], dtype=object))
        return [pb_utils.InferenceResponse([told]) for _ in requests]

    def folder(self):
        return pb_utils.get_model_dir()

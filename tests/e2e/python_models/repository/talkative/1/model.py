"""Writes to the log in every way there is."""

import logging
import sys

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]
        pb_utils.Logger.log_info(f"{self.name} begins")

    def execute(self, requests):
        logger = pb_utils.Logger
        logger.log(f"{self.name} log")
        logger.log(f"{self.name} log with a level", logger.ERROR)
        logger.log_warn(f"{self.name} warning \u00fc")
        logger.log_error(f"{self.name} error")
        logger.log_verbose(f"{self.name} verbose")
        print(f"{self.name} print")
        print(f"{self.name} stderr", file=sys.stderr)
        logging.getLogger("some.library").warning("%s library", self.name)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())])
            for r in requests
        ]

    def finalize(self):
        pb_utils.Logger.log_info(f"{self.name} ends")

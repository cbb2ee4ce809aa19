"""Runs inside Triton's Python backend and Naiad's: a decoupled model with many small responses."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers each request `parameters.RESPONSES` times with its own input."""

    def initialize(self, args):  # type: ignore[no-untyped-def]  # Triton's types are unknown here
        """Reads how many responses there are to be."""
        config = json.loads(args["model_config"])
        self.responses = int(config["parameters"]["RESPONSES"]["string_value"])

    def execute(self, requests):  # type: ignore[no-untyped-def]
        """Sends all responses of a request before those of the next one."""
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            sender = request.get_response_sender()
            for _ in range(self.responses):
                output = pb_utils.Tensor("OUTPUT0", tensor)
                sender.send(pb_utils.InferenceResponse([output]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

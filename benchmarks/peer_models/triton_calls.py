"""Runs inside Triton's Python backend and Naiad's: calls `identity`, one call after the other."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """OUTPUT0 is what the last of `parameters.CALLS` calls with INPUT0 gave."""

    def initialize(self, args):  # type: ignore[no-untyped-def]  # Triton's types are unknown here
        """Reads how many calls there are to be, at least 1."""
        config = json.loads(args["model_config"])
        self.calls = int(config["parameters"]["CALLS"]["string_value"])

    def execute(self, requests):  # type: ignore[no-untyped-def]
        """One response per request, in order."""
        return [self.answer(request) for request in requests]  # type: ignore[no-untyped-call]

    def answer(self, request):  # type: ignore[no-untyped-def]
        """The output of the last call; raises what a call has as its error."""
        given = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        for _ in range(self.calls):
            call = pb_utils.InferenceRequest(
                model_name="identity", requested_output_names=["OUTPUT0"], inputs=[given]
            )
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
        output = pb_utils.get_output_tensor_by_name(response, "OUTPUT0")
        return pb_utils.InferenceResponse([output])

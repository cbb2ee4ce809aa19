"""Runs inside Triton's Python backend and Naiad's: the sum and the difference of two inputs."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """OUTPUT0 is INPUT0 + INPUT1, OUTPUT1 is INPUT0 - INPUT1."""

    def execute(self, requests):  # type: ignore[no-untyped-def]  # Triton's types are unknown here
        """One response per request, in order."""
        return [self.answer(request) for request in requests]  # type: ignore[no-untyped-call]

    def answer(self, request):  # type: ignore[no-untyped-def]
        """Both outputs, whichever the client wants."""
        left, right = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("INPUT0", "INPUT1")
        )
        both = [("OUTPUT0", left + right), ("OUTPUT1", left - right)]
        return pb_utils.InferenceResponse([pb_utils.Tensor(*each) for each in both])

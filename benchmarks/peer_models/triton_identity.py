"""Runs inside Triton's Python backend and Naiad's: OUTPUT0 is INPUT0."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers each request of a batch with its own input."""

    def execute(self, requests):  # type: ignore[no-untyped-def]  # Triton's types are unknown here
        """One response per request, in order."""
        tensors = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", t)]) for t in tensors]

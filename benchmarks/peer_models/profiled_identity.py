"""Runs inside Naiad's worker: OUTPUT0 is INPUT0, and cProfile watches the worker meanwhile."""

import cProfile
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Leaves `profile` beside this file at its end: CPU time of all that the main thread did."""

    def initialize(self, args):  # type: ignore[no-untyped-def]  # Triton's types are unknown here
        """Begins to watch."""
        self.profile = cProfile.Profile(time.thread_time)
        self.profile.enable()

    def execute(self, requests):  # type: ignore[no-untyped-def]
        """One response per request, in order."""
        tensors = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", t)]) for t in tensors]

    def finalize(self):  # type: ignore[no-untyped-def]
        """Writes what was seen."""
        self.profile.disable()
        self.profile.dump_stats(Path(__file__).with_name("profile"))

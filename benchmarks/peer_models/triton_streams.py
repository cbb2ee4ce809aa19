"""Runs inside Triton's Python backend: silero-vad for many streams, with states of its own."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """`model.onnx` beside this file, on one thread; a state for each sequence that is live."""

    def initialize(self, args):  # type: ignore[no-untyped-def]  # Triton's types are unknown here
        """Opens the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = Path(__file__).with_name("model.onnx")
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.states = {}

    def execute(self, requests):  # type: ignore[no-untyped-def]
        """One response per request, in order; all requests at hand run in one batch."""
        audio, start, end, ids = (
            [pb_utils.get_input_tensor_by_name(r, name).as_numpy() for r in requests]
            for name in ("audio", "START", "END", "CORRID")
        )
        ids = [int(each.flat[0]) for each in ids]
        fresh = np.zeros((2, 128), np.float32), np.zeros(64, np.float32)
        kept = [
            fresh if first.flat[0] else self.states[one]
            for one, first in zip(ids, start, strict=True)
        ]
        states, contexts = (np.stack(parts) for parts in zip(*kept, strict=True))
        feed = {"audio": np.concatenate(audio), "state_in": states, "context": contexts}
        speech, states, contexts = self.session.run(["speech", "state_out", "context_out"], feed)
        for row, (one, last) in enumerate(zip(ids, end, strict=True)):
            if last.flat[0]:
                self.states.pop(one, None)
            else:
                self.states[one] = states[row], contexts[row]
        parts = np.split(speech, len(requests))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("speech", part)]) for part in parts]

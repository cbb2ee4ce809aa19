"""Finds the pieces of speech in a sound; silero_vad says how probable each window is.

Written for Triton's interface; runs there, too, with silero_vad beside it.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

from . import segments

RATE = 16000
WINDOW = 512
CONTEXT = 64
"""Samples before a window that silero_vad gets with it."""


class Refused(Exception):
    """A model that was asked gave an error."""

    def __init__(self, model, error):
        super().__init__(model)
        self.error = pb_utils.TritonError(f"{model}: {error.message()}", error.code())


class TritonPythonModel:
    """One object for each instance."""

    def initialize(self, args):
        """Read the parameters of the configuration."""
        given = json.loads(args["model_config"])["parameters"]
        number = {name: float(value["string_value"]) for name, value in given.items()}
        self.threshold = number["threshold"]
        self.min_speech = RATE * number["min_speech_ms"] / 1000
        self.min_silence = RATE * number["min_silence_ms"] / 1000
        self.pad = int(RATE * number["pad_ms"] / 1000)

    def execute(self, requests):
        """A response for each sound."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """`segments`, or what is wrong with the sound, or silero_vad's error."""
        audio = pb_utils.get_input_tensor_by_name(request, "audio").as_numpy()
        if not np.isfinite(audio).all():
            text = "audio has values that are no numbers; send samples in -1...1"
            error = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        try:
            found = self.segments(audio)
        except Refused as refused:
            return pb_utils.InferenceResponse(error=refused.error)
        seconds = np.array(found, np.float32).reshape(-1, 2) / RATE
        return pb_utils.InferenceResponse([pb_utils.Tensor("segments", seconds)])

    def segments(self, audio):
        """Begin and end of each piece of speech, in samples."""
        probabilities = list(speech(audio))
        pieces = segments.find(
            probabilities, WINDOW, len(audio), self.threshold, self.min_speech, self.min_silence
        )
        return segments.grown(pieces, self.pad, len(audio))


def speech(audio):
    """The probability of speech in each window; the last one is filled up with silence."""
    windows = -(-len(audio) // WINDOW)
    padded = np.zeros(CONTEXT + windows * WINDOW, np.float32)
    padded[CONTEXT : CONTEXT + len(audio)] = audio
    state = np.zeros((2, 1, 128), np.float32)
    for start in range(0, windows * WINDOW, WINDOW):
        window = padded[None, start : start + CONTEXT + WINDOW]
        probability, state = ask(window, state)
        yield probability


def ask(window, state):
    """silero_vad's probability and its next state. Raises Refused."""
    request = pb_utils.InferenceRequest(
        model_name="silero_vad",
        requested_output_names=["output", "stateN"],
        inputs=[
            pb_utils.Tensor("input", window),
            pb_utils.Tensor("state", state),
            pb_utils.Tensor("sr", np.array([RATE], np.int64)),
        ],
    )
    answer = request.exec()
    if answer.has_error():
        raise Refused("silero_vad", answer.error())
    output, state = (
        pb_utils.get_output_tensor_by_name(answer, name).as_numpy() for name in ("output", "stateN")
    )
    return float(output[0, 0]), state

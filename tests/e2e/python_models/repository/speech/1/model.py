"""Whether a stream of sound is speech: Silero VAD in PyTorch, which keeps the state of the stream
itself. So an instance has one stream at a time."""

import os

import torch
import triton_python_backend_utils as pb_utils

RATE = 16000


class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(1)
        path = os.path.join(pb_utils.get_model_dir(), "silero_vad.jit")
        self.model = torch.jit.load(path).eval()

    @torch.no_grad()
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        if pb_utils.get_input_tensor_by_name(request, "START").as_numpy()[0]:
            self.model.reset_states()
        audio = torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, "audio"))
        speech = self.model(audio[None], RATE)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("speech", speech[0])])

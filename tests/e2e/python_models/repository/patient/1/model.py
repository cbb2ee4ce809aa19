"""Waits until its client has left, and notes in a file who has seen it."""

import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.wait(request) for request in requests]

    def wait(self, request):
        path = request.inputs()[0].as_numpy()[0].decode()
        sender = request.get_response_sender()
        with open(path, "w") as file:
            print("begun", file=file, flush=True)
            while not request.is_cancelled():
                time.sleep(0.005)
            print(f"request True, sender {sender.is_cancelled()}", file=file, flush=True)
        error = pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED)
        return pb_utils.InferenceResponse(error=error)

"""Not decoupled, and answers by response senders: at once, later, from a thread, or not at all."""

import json
import threading

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def response(x):
    return pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)])


class TritonPythonModel:
    def initialize(self, args):
        self.kept = []

    def execute(self, requests):
        if len(requests) != 1:
            raise RuntimeError("requests come one by one")
        (request,) = requests
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().copy()
        return getattr(self, json.loads(request.parameters())["how"])(request, x)

    def at_once(self, request, x):
        request.get_response_sender().send(response(x), flags=FINAL)
        return None

    def listed(self, request, x):
        request.get_response_sender().send(response(x), FINAL)
        return [None]

    def in_two(self, request, x):
        sender = request.get_response_sender()
        sender.send(response(x))
        sender.send(flags=FINAL)

    def from_a_thread(self, request, x):
        sender = request.get_response_sender()

        def work():
            sender.send(response(x), flags=FINAL)

        threading.Thread(target=work).start()
        return None

    def keep(self, request, x):
        self.kept.append((request.get_response_sender(), x))

    def answer_kept(self, request, x):
        for sender, kept in self.kept:
            sender.send(response(kept), flags=FINAL)
        self.kept.clear()
        return [response(x)]

    def unused(self, request, x):
        request.get_response_sender()
        return [response(x)]

    def twice(self, request, x):
        request.get_response_sender().send(response(x), flags=FINAL)
        return [response(x)]

    def two_responses(self, request, x):
        sender = request.get_response_sender()
        sender.send(response(x))
        try:
            sender.send(response(x))
        except Exception as error:
            print(f"second response: {error}")
            sender.send(flags=FINAL)

    def final_only(self, request, x):
        request.get_response_sender().send(flags=FINAL)

    def drop(self, request, x):
        request.get_response_sender()
        return None

    def error(self, request, x):
        error = pb_utils.TritonError("by a sender", pb_utils.TritonError.NOT_FOUND)
        request.get_response_sender().send(pb_utils.InferenceResponse(error=error), flags=FINAL)

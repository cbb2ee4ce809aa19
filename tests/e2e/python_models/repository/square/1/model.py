"""As many responses as the input says, each with the input: sent by a thread, as in Triton's
example of a decoupled model. The parameter `end` says how it ends."""

import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        if not pb_utils.using_decoupled_model_transaction_policy(config):
            raise pb_utils.TritonModelException("the model must be decoupled")
        self.inflight = 0
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            self.begin(request)
        return None

    def begin(self, request):
        parameters = json.loads(request.parameters())
        value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        thread = threading.Thread(
            target=self.respond,
            args=(request.get_response_sender(), value.copy(), parameters.get("end", "flag")),
            daemon=True,
        )
        with self.lock:
            self.inflight += 1
        thread.start()

    def respond(self, sender, value, end):
        count = int(value[0])
        for number in range(count):
            response = pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", value)], parameters={"number": number}
            )
            with_last = end == "with_last" and number == count - 1
            sender.send(response, flags=FINAL if with_last else 0)
        if end == "flag":
            sender.send(flags=FINAL)
        elif end == "error":
            error = pb_utils.TritonError("no more", pb_utils.TritonError.UNAVAILABLE)
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
        elif end == "after_final":
            sender.send(flags=FINAL)
            try:
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.zeros(1, "i"))]))
            except Exception as error:
                print(f"after the end: {error}")
        # else: the sender is dropped
        with self.lock:
            self.inflight -= 1

    def finalize(self):
        assert self.inflight == 0

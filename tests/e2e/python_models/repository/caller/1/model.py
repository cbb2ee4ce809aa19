"""Calls other models (business logic scripting) in the way that the parameter `how` names."""

import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


def call(model, x, outputs=("OUTPUT0", "OUTPUT1"), **more):
    return pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor("INPUT0", x), pb_utils.Tensor("INPUT1", x)],
        **more,
    )


def told(values):
    tensor = pb_utils.Tensor("told", np.array([json.dumps(v) for v in values], dtype=object))
    return pb_utils.InferenceResponse([tensor])


def problem(response):
    return [int(response.error().code()), response.error().message()]


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]

    def execute(self, requests):
        responses = []
        for request in requests:
            self.parameters = json.loads(request.parameters())
            self.model = self.parameters.get("model", "add_sub")
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            responses.append(getattr(self, self.parameters["how"])(request, x))
        return responses

    def sync(self, request, x):
        response = call(self.model, x).exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        y = pb_utils.get_output_tensor_by_name(response, "OUTPUT0").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])

    def handed_on(self, request, x):
        """The other model's output, as it came, under its own name."""
        inner = pb_utils.InferenceRequest(
            model_name="doubler", requested_output_names=["y"], inputs=request.inputs()
        )
        response = inner.exec()
        return pb_utils.InferenceResponse(output_tensors=response.output_tensors())

    def error_handed_on(self, request, x):
        response = call(self.model, x).exec()
        return pb_utils.InferenceResponse(error=response.error())

    def error(self, request, x):
        response = call(self.model, x, **self.parameters.get("more", {})).exec()
        return told([response.has_error(), *problem(response), len(response.output_tensors())])

    def some_outputs(self, request, x):
        response = call(self.model, x, ["OUTPUT1"]).exec()
        return told([t.name() for t in response.output_tensors()])

    def all_at_once(self, request, x):
        """From threads of its own."""
        results = {}

        def work(number):
            response = call(self.model, x + number).exec()
            results[number] = response.output_tensors()[0].as_numpy().tolist()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return told([results[n] for n in range(8)])

    def everything(self, request, x):
        """All that a request can carry along."""
        inner = pb_utils.InferenceRequest(
            request_id="inner",
            correlation_id=77,
            inputs=[pb_utils.Tensor("x", np.array([1], np.int32))],
            requested_output_names=["told"],
            model_name="tell_me",
            model_version=1,
            flags=pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
            timeout=12345,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            trace=request.trace(),
            parameters={"text": "\u00fc", "flag": True, "number": -5},
        )
        response = inner.exec()
        text = response.output_tensors()[0].as_numpy()[0]
        return told([json.loads(text), json.loads(response.parameters())])

    def sequence(self, request, x):
        sums = []
        for number in range(1, 5):
            inner = pb_utils.InferenceRequest(
                model_name="accumulate",
                requested_output_names=["sum"],
                inputs=[pb_utils.Tensor("x", np.array([[number]], np.int32))],
                correlation_id="from a model" if self.parameters.get("text_id") else 4711,
            )
            if number == 1:
                inner.set_flags(pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
            if number == 4:
                inner.set_flags(pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
            response = inner.exec()
            if response.has_error():
                return told(problem(response))
            sums.append(response.output_tensors()[0].as_numpy().item())
        return told(sums)

    def square(self, number, name="square"):
        return pb_utils.InferenceRequest(
            model_name=name,
            requested_output_names=["OUT"],
            inputs=[pb_utils.Tensor("IN", np.array([number], np.int32))],
            parameters={"end": self.parameters.get("end", "flag")},
        )

    def stream(self, request, x):
        found, empty = [], 0
        responses = self.square(int(x[0])).exec(decoupled=True)
        for response in responses:
            if response.has_error():
                found.append(problem(response))
            elif response.output_tensors():
                found.append(response.output_tensors()[0].as_numpy().item())
            else:
                empty += 1
        again = sum(1 for response in responses if response.output_tensors())
        return told([found, empty, again])

    def stream_cancelled(self, request, x):
        inner = pb_utils.InferenceRequest(
            model_name="patient_stream",
            requested_output_names=["y"],
            inputs=[pb_utils.Tensor("file", np.array([self.parameters["file"]], dtype=object))],
        )
        responses = inner.exec(decoupled=True)
        seen = []
        for response in responses:
            if response.has_error():
                seen.append(int(response.error().code()))
            elif response.output_tensors():
                seen.append("response")
            if len(seen) == 3:
                responses.cancel()
        return told([seen[:3], seen[-1]])

    def not_as_stream(self, request, x):
        return told(problem(self.square(2).exec()))

    def one_as_stream(self, request, x):
        """A model that is not decoupled, called as if it were."""
        responses = call(self.model, x).exec(decoupled=True)
        return told([len(r.output_tensors()) for r in responses if r.output_tensors()])

    def itself(self, request, x):
        inner = pb_utils.InferenceRequest(
            model_name=self.name,
            requested_output_names=["told"],
            inputs=request.inputs(),
            parameters={"how": "some_outputs"},
        )
        return told(problem(inner.exec()))

    def waits(self, request, x):
        """For a model that waits until nobody wants its answer any more."""
        inner = pb_utils.InferenceRequest(
            model_name="patient",
            requested_output_names=["y"],
            inputs=[pb_utils.Tensor("file", np.array([self.parameters["file"]], dtype=object))],
        )
        return pb_utils.InferenceResponse(error=inner.exec().error())

    def large(self, request, x):
        response = call(self.model, x).exec()
        y = response.output_tensors()[0].as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])

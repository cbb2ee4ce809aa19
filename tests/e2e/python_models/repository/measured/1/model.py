"""Metrics of its own, shared by its instances."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        label = args["model_name"]
        self.counts = pb_utils.MetricFamily(
            name=f"requests_{label}",
            description="How many requests came.",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.count = self.counts.Metric(labels={"model": label, "version": "1"})
        self.last_family = pb_utils.MetricFamily(
            name=f"last_{label}",
            description="The last value.",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self.last = self.last_family.Metric(labels={"model": label})
        self.sizes = pb_utils.MetricFamily(
            name=f"sizes_{label}",
            description="How large the values were.",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        self.size = self.sizes.Metric(labels={"model": label}, buckets=[1.0, 10.0])

    def execute(self, requests):
        responses = []
        for request in requests:
            x = request.inputs()[0].as_numpy()
            self.count.increment(1)
            self.last.set(float(x[0]))
            self.size.observe(float(x[0]))
            assert self.last.value() == float(x[0])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
        return responses

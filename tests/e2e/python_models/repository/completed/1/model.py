"""Has no configuration: says itself what it takes and gives."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        inputs = [
            {"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [4]},
            {"name": "INPUT1", "data_type": "TYPE_FP32", "dims": [4], "optional": True},
        ]
        outputs = [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [4]}]
        config = auto_complete_model_config.as_dict()
        input_names = [one["name"] for one in config.get("input", [])]
        for one in inputs:
            if one["name"] not in input_names:
                auto_complete_model_config.add_input(one)
        for one in outputs:
            auto_complete_model_config.add_output(one)
        auto_complete_model_config.set_max_batch_size(8)
        auto_complete_model_config.set_dynamic_batching()
        auto_complete_model_config.set_model_transaction_policy(dict(decoupled=False))
        return auto_complete_model_config

    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        assert self.config["max_batch_size"] == 8 and "dynamic_batching" in self.config

    def execute(self, requests):
        responses = []
        for request in requests:
            y = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            more = pb_utils.get_input_tensor_by_name(request, "INPUT1")
            if more is not None:
                y = y + more.as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", y)]))
        return responses

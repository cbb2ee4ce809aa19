"""Makes tokens of texts and asks the model minilm what they mean.

Written for Triton's interface; runs there, too, with minilm beside it.
"""

import os

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

LONGEST = 512
"""Tokens that minilm looks at."""


class TritonPythonModel:
    """One object for each instance."""

    def initialize(self, args):
        """Read the tokenizer, which lies beside this file."""
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(LONGEST)

    def execute(self, requests):
        """One call of minilm for the texts of all requests."""
        texts = [pb_utils.get_input_tensor_by_name(r, "text").as_numpy()[:, 0] for r in requests]
        answer = self.embed([text.decode("utf-8", "replace") for text in np.concatenate(texts)])
        if answer.has_error():
            return [pb_utils.InferenceResponse(error=answer.error()) for _ in requests]
        embeddings = pb_utils.get_output_tensor_by_name(answer, "embedding").as_numpy()
        ends = np.cumsum([len(text) for text in texts])[:-1]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("embedding", part)])
            for part in np.split(embeddings, ends)
        ]

    def embed(self, texts):
        """minilm's response to texts, the shorter ones padded."""
        encoded = self.tokenizer.encode_batch(texts)
        ids = np.array([one.ids for one in encoded], np.int64)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        request = pb_utils.InferenceRequest(
            model_name="minilm",
            requested_output_names=["embedding"],
            inputs=[pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)],
        )
        return request.exec()

"""Makes tokens of texts.

Written for Triton's interface; runs there, too.
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
        """A response for each request; only texts of one request are padded to one length."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """`input_ids` and `attention_mask` of the texts of a request."""
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0]
        encoded = self.tokenizer.encode_batch([text.decode("utf-8", "replace") for text in texts])
        ids = np.array([one.ids for one in encoded], np.int64)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)]
        )

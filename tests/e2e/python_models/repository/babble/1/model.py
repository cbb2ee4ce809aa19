"""Writes on from a prompt, letter by letter, each a response: from which letters follow which in
corpus.txt. Parameters: `length` and `seed`. Many texts are written at once."""

import asyncio
import json
import os
import random
from collections import defaultdict

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
ORDER = 4


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "corpus.txt")) as file:
            corpus = " ".join(file.read().split())
        self.following = defaultdict(list)
        for at in range(len(corpus)):
            for order in range(min(at, ORDER) + 1):
                self.following[corpus[at - order : at]].append(corpus[at])

    async def execute(self, requests):
        await asyncio.gather(*[self.write(request) for request in requests])

    async def write(self, request):
        parameters = json.loads(request.parameters())
        chance = random.Random(parameters.get("seed", 0))
        text = pb_utils.get_input_tensor_by_name(request, "prompt").as_numpy()[0].decode()
        sender = request.get_response_sender()
        for _ in range(parameters.get("length", 40)):
            if sender.is_cancelled():
                break
            letter = chance.choice(self.choices(text))
            text += letter
            tensor = pb_utils.Tensor("text", np.array([letter], dtype=object))
            sender.send(pb_utils.InferenceResponse([tensor]))
            await asyncio.sleep(0)
        sender.send(flags=FINAL)

    def choices(self, text):
        """What may follow: by as many of the last letters as the corpus knows together."""
        for order in range(min(len(text), ORDER), -1, -1):
            found = self.following.get(text[len(text) - order :])
            if found:
                return found

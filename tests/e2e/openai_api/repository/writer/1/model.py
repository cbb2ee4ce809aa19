"""A generator with nearly all of the signature. It says the words of its prompt again, each a
token, for each choice with the number of the choice in front; what it was asked comes back too.

Words that mean something: `fail` raises, `wait` writes the file `waits` beside this one, waits
until the client has left and then writes `left`, `parameters` is replaced by what the model was
given.
"""

import json
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
HERE = Path(__file__).parent


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.answer, args=(request, sender), daemon=True).start()

    def answer(self, request, sender):
        try:
            self.write(request, sender)
        except Exception as error:
            sender.send(
                pb_utils.InferenceResponse(error=pb_utils.TritonError(repr(error))), flags=FINAL
            )

    def write(self, request, sender):
        given = json.loads(text(request, "sampling_parameters") or "{}")
        names = request.requested_output_names()
        ids = pb_utils.get_input_tensor_by_name(request, "input_ids")
        if ids is not None:
            words = [f"<{number}>" for number in ids.as_numpy()]
        elif (chat := text(request, "chat")) is not None:
            given["chat"] = json.loads(chat)
            content = given["chat"]["messages"][-1].get("content") or ""
            if isinstance(content, list):
                content = "".join(part["text"] for part in content)
            words = content.split(" ")
        else:
            words = text(request, "text_input").split(" ")
        told = json.dumps(given, sort_keys=True)
        most = given.get("max_tokens") or len(words)
        said = [told if word == "parameters" else word for word in words][:most]
        reason = "length" if most < len(words) else "stop"
        n = given.get("n", 1)
        streams = pb_utils.get_input_tensor_by_name(request, "stream")
        if streams is not None and not streams.as_numpy()[0]:
            for word in said:
                self.obey(word, sender)
            rows = [self.row(i, said, len(said), reason, given, n) for i in range(n)]
            sender.send(respond(names, rows, len(words)), flags=FINAL)
            return
        for count, word in enumerate(said, 1):
            self.obey(word, sender)
            for i in range(n):
                end = reason if count == len(said) else ""
                row = self.row(i, [word], count, end, given, n)
                sender.send(respond(names, [row], len(words)))
        sender.send(flags=FINAL)

    def row(self, index, words, count, reason, given, n):
        start = count - len(words)
        spelled = [
            (" " if start + i else f"{index}:" if n > 1 else "") + word
            for i, word in enumerate(words)
        ]
        scored = None
        if given.get("logprobs") is not None:
            top = [score(f"best{i}", -0.25 - i) for i in range(given["logprobs"])]
            scored = [{**score(word, -0.5), "top": top} for word in spelled]
        return {
            "text_output": "".join(spelled).encode(),
            "index": index,
            "finish_reason": reason.encode(),
            "stop_reason": b'"end"' if reason and words[-1] == "end" else b"null",
            "output_ids": json.dumps([len(word) for word in words]).encode(),
            "logprobs": json.dumps(scored).encode(),
            "num_output_tokens": count,
        }

    def obey(self, word, sender):
        if word == "fail":
            raise ValueError("the word is fail")
        if word == "wait":
            (HERE / "waits").touch()
            while not sender.is_cancelled():
                time.sleep(0.01)
            (HERE / "left").touch()


def score(token, logprob):
    return {
        "id": len(token),
        "token": token,
        "bytes": list(token.encode()),
        "logprob": logprob,
        "rank": 1,
    }


def text(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()[0].decode()


def respond(names, rows, inputs):
    kinds = {"index": np.int32, "num_output_tokens": np.uint32}
    tensors = {
        name: np.array([row[name] for row in rows], kinds.get(name, np.object_)) for name in rows[0]
    }
    tensors["num_input_tokens"] = np.array([inputs], np.uint32)
    tensors["num_cached_tokens"] = np.array([1], np.uint32)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array) for name, array in tensors.items() if name in names]
    )

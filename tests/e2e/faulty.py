"""Models in Python that do what a test tells them, to see what their faults do to others.

A request's parameter `code` is Python that runs in `execute`, where `self`, `request`, `pb_utils`,
`say` and `wait` are known; the model answers `y = x`, with its process in the parameter `pid`. The
configuration's parameter `initialize` is such code for `initialize`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.process import Reply, ServerProcess, eventually

MODEL = '''
import json
import os
import sys
import threading
import time

import triton_python_backend_utils as pb_utils


def say(path):
    """Tell the test that this place is reached."""
    open(path, "w").close()


def wait(path):
    """Wait until the test allows to go on."""
    while not os.path.exists(path):
        time.sleep(0.005)


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        self.folder = args["model_repository"]
        given = self.config["parameters"].get("initialize", {}).get("string_value", "")
        exec(given, {**globals(), "self": self})

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = json.loads(request.parameters())
        exec(given.get("code", ""), {**globals(), "self": self, "request": request})
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", x)], parameters={"pid": os.getpid()}
        )
'''

DECOUPLED = """
class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.serve, args=(request, sender)).start()

    def serve(self, request, sender):
        given = json.loads(request.parameters())
        for number in range(given.get("responses", 0)):
            sender.send(self.answer_with(number))
        exec(given.get("code", ""), {**globals(), "self": self, "request": request})
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def answer_with(self, number):
        y = pb_utils.Tensor("y", __import__("numpy").full((1,), number, "float32"))
        return pb_utils.InferenceResponse([y])
"""


def write(
    repository: Path,
    name: str,
    more: str = "",
    parameters: Mapping[str, str] | None = None,
    decoupled: bool = False,
) -> Path:
    """A model of one FP32 input `x` and one output `y` of any length; its folder.

    more: of the configuration.
    """
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    given = "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in (parameters or {}).items()
    )
    transactions = "model_transaction_policy { decoupled: true }\n" if decoupled else ""
    (folder / "config.pbtxt").write_text(
        'backend: "python"\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [-1] }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: [-1] }\n'
        f"{transactions}{given}{more}"
    )
    (folder / "1" / "model.py").write_text(MODEL + (DECOUPLED if decoupled else ""))
    return folder


def body(code: str = "", x: Sequence[float] = (1.0,), **parameters: Any) -> dict[str, Any]:
    """A request whose execution runs `code`."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(x)], "data": list(x)}
    return {"inputs": [tensor], "parameters": {"code": code, **parameters}}


def infer(server: ServerProcess, model: str, code: str = "") -> Reply:
    """One inference over HTTP."""
    return server.post(f"/v2/models/{model}/infer", body(code))


def large(server: ServerProcess, model: str, size: int) -> Reply:
    """One inference with so many bytes of input, and of output."""
    binary = {"binary_data_size": size}
    tensor = {"name": "x", "datatype": "FP32", "shape": [size // 4], "parameters": binary}
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return server.call("POST", f"/v2/models/{model}/infer", head + bytes(size), headers)


def pid(server: ServerProcess, model: str) -> int:
    """The process that answers; also waits until one does."""

    def answer() -> int:
        reply = infer(server, model)
        return int(reply.json()["parameters"]["pid"]) if reply.status == 200 else 0

    return eventually(answer)


def load(server: ServerProcess, model: str) -> None:
    """Load it, and see that it is."""
    reply = server.post(f"/v2/repository/models/{model}/load")
    assert reply.status == 200, reply.body


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for yet does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def children(server: ServerProcess, repository: Path, model: str) -> tuple[int, int]:
    """Have the model start two processes: one forked off without a new program, one with."""
    code = """
import subprocess
first = os.fork()
if not first:
    time.sleep(1000)
second = subprocess.Popen(["sleep", "1000"]).pid
with open(self.folder + "/children", "w") as file:
    file.write(f"{first} {second}")
"""
    assert infer(server, model, code).status == 200
    first, second = (repository / model / "children").read_text().split()
    return int(first), int(second)

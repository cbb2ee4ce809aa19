"""Memory that a large request needed is given back on both sides, when nobody has used it for a
while."""

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from naiad_backends.api import ModelSpec, Placement, Request, Tensor, TensorSpec
from naiad_backends.python.environment import interpreter
from naiad_backends.python.instance import Limits, ProcessInstance
from naiad_backends.services import Alone

MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.kept = None

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if x[0] == 1:
                self.kept = x
            if x[0] == 2:
                self.kept = None
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)]))
        return answers
"""

SIZE = 8 << 20


@pytest.fixture
def services() -> Iterator[Alone]:
    made = Alone()
    yield made
    loop = made.loop
    loop.call_soon_threadsafe(loop.stop)
    while loop.is_running():
        time.sleep(0.001)
    loop.close()


@pytest.fixture
def instance(services: Alone, tmp_path: Path) -> Iterator[ProcessInstance]:
    """Of a model that keeps an input if it begins with 1, until another one begins with 2. It gives
    back at once what is not used."""
    (tmp_path / "1").mkdir()
    file = tmp_path / "1" / "model.py"
    file.write_text(MODEL)
    spec = ModelSpec(
        "model",
        1,
        file.parent,
        inputs=(TensorSpec("x", "FP32", (-1,)),),
        outputs=(TensorSpec("y", "FP32", (-1,)),),
    )
    head = {
        "complete": False,
        "file": str(file),
        "version": str(file.parent),
        "args": {},
        "decoupled": False,
        "outputs": {"y": ("FP32", (-1,))},
        "hidden": [],
        "strict_outputs": False,
    }

    async def begin() -> ProcessInstance:
        limits = Limits(tidy_seconds=0.01, idle_seconds=0.0)
        environment = interpreter("", tmp_path, tmp_path)
        made = ProcessInstance(services, spec, Placement("model_0"), environment, head, limits)
        await made.start()
        return made

    made = asyncio.run_coroutine_threadsafe(begin(), services.loop).result(60)
    yield made
    made.close()


def shared(process: int) -> int:
    """Bytes of blocks that a process has mapped."""
    found = 0
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        if "memfd:naiad" in line:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            found += end - start
    return found


def run(instance: ProcessInstance, first: float, size: int = SIZE) -> Tensor:
    x = np.zeros(size // 4, np.float32)
    x[0] = first
    request = Request("model", inputs={"x": Tensor.from_numpy("x", x)})
    (response,) = instance.execute([request]).responses
    assert response.error is None
    return response.outputs[0]


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def here(instance: ProcessInstance) -> Callable[[], int]:
    """Bytes that this process has mapped since the test began; other tests may have left some."""
    before = shared(os.getpid())
    return lambda: max(shared(os.getpid()) - before, 0)


def test_memory_is_given_back(instance: ProcessInstance, here: Callable[[], int]) -> None:
    output = run(instance, 0)
    assert here() >= SIZE
    # The answer lies in the worker's memory, which it keeps.
    eventually(lambda: here() < 2 * SIZE)
    assert output.numpy()[1] == 1
    del output
    eventually(lambda: here() == shared(instance.pid) == 0)
    assert not re.search("naiad", " ".join(os.listdir("/dev/shm")))
    assert run(instance, 0).numpy()[-1] == 1


def test_what_a_model_keeps_is_kept(instance: ProcessInstance, here: Callable[[], int]) -> None:
    run(instance, 1)
    for _ in range(5):
        run(instance, 0)
    assert shared(instance.pid) >= SIZE
    run(instance, 2, 64)
    eventually(lambda: here() == shared(instance.pid) == 0)


def test_memory_does_not_pile_up(instance: ProcessInstance, here: Callable[[], int]) -> None:
    for _ in range(30):
        run(instance, 0)
        assert here() <= 8 * SIZE
    eventually(lambda: here() == shared(instance.pid) == 0)

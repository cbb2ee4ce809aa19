"""What models do beside their work: processes, event loops, subprocesses, threads."""

import asyncio
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils


def double(value):
    return 2 * value


async def later(value):
    await asyncio.sleep(0.001)
    return 2 * value


class TritonPythonModel:
    def initialize(self, args):
        self.threads = ThreadPoolExecutor(2)

    def execute(self, requests):
        responses = []
        for request in requests:
            x = request.inputs()[0].as_numpy()
            how = json.loads(request.parameters())["how"]
            y = np.array(getattr(self, how)(x.tolist()))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses

    def pool(self, values):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(double, values)

    def spawned(self, values):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.map(double, values)

    def loop(self, values):
        async def run():
            return await asyncio.gather(*[later(value) for value in values])

        return asyncio.run(run())

    def command(self, values):
        code = "import sys; print([2 * float(v) for v in sys.argv[1:]])"
        command = [sys.executable, "-c", code, *map(str, values)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    def pooled_threads(self, values):
        return list(self.threads.map(double, values))

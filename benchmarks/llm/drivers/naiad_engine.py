"""Naiad's engine in this process. Arguments: THREADS MODEL native|torch."""

import sys
import time
from pathlib import Path

from benchmarks.llm.drivers.protocol import serve
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.engine import Engine
from naiad_backends.llm.engine.runners import make_runner
from naiad_backends.llm.messages import Add
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling


def main() -> None:
    """Load the model and serve."""
    threads, path, kernels = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    options = Options(threads=threads, cpu_kernels=kernels, max_model_len=4096)
    runner = make_runner(open_checkpoint(path), options, "cpu")
    engine = Engine(runner, runner.make_sampler(), options)
    count = 0

    def run(prompts: list[list[int]], output: int) -> float:
        nonlocal count
        begun = time.perf_counter()
        for prompt in prompts:
            count += 1
            engine.add(Add(count, prompt, Sampling(temperature=0.0, max_tokens=output)))
        while not engine.idle:
            engine.step()
        return time.perf_counter() - begun

    serve(run)


main()

"""How fast the native kernels compute steps of SmolLM2-135M, and how near memory's speed that is.

    .venv/bin/python -m benchmarks.llm_step [--threads 2] [--model FILE]

The engine's other parts are left out: no scheduler, no sampler, no server. Each figure is the best
of several steps. Beside it stand the bytes that a step must read (weights once, and each sequence's
keys and values), and which part of the memory's speed, measured in the same run, that makes.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from naiad.settings import cache_folder
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.runner import Step
from naiad_backends.llm.native.runner import NativeRunner
from naiad_backends.llm.options import Options

CASES = [
    # name, sequences, tokens of each before the step, tokens of each in the step
    ("decode, batch 1", 1, 128, 1),
    ("decode, batch 8", 8, 128, 1),
    ("decode, batch 32", 32, 128, 1),
    ("decode, batch 8, context 2048", 8, 2047, 1),
    ("prefill of 512", 1, 0, 512),
]


def main() -> None:
    """Measure every case and print a line for each."""
    parser = argparse.ArgumentParser(description="Measure steps of the native kernels.")
    default = cache_folder() / "examples" / "smollm2" / "1" / "model.gguf"
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case")
    given = parser.parse_args()
    options = Options(
        threads=given.threads, max_num_batched_tokens=512, kv_cache_memory_bytes=1 << 30
    )
    runner = NativeRunner(open_checkpoint(given.model), options, cache_folder() / "kernels")
    print(runner.description)
    speed = memory_speed(runner.threads)
    print(f"memory: {speed / 1e9:.1f} GB/s read by {runner.threads} threads")
    for name, sequences, before, count in CASES:
        step = make_step(runner, sequences, before, count)
        fill(runner, step)
        took = best(partial(runner.forward, step), given.seconds)
        read = runner.weight_bytes + sequences * (before + count / 2) * runner.token_bytes
        print(
            f"{name}: {took * 1e3:.2f} ms, {sequences * count / took:.0f} tokens/s, "
            f"{read / 1e6:.0f} MB, {read / took / 1e9:.1f} GB/s, "
            f"{read / speed / took:.0%} of the memory's speed"
        )


def memory_speed(threads: int) -> float:
    """Bytes a second that a sum over more than any cache holds reads."""
    torch.set_num_threads(threads)
    numbers = torch.ones(1 << 26)
    return numbers.nbytes / best(numbers.sum, 2.0)


def make_step(runner: NativeRunner, sequences: int, before: int, count: int) -> Step:
    """Sequences of equal length, each with blocks of its own; what is in these does not matter."""
    size = runner.block_size
    each = -(-(before + count) // size)
    blocks = 1 + np.arange(sequences * each, dtype=np.int32).reshape(sequences, each)
    positions = np.tile(np.arange(before, before + count, dtype=np.int32), sequences)
    owners = np.repeat(np.arange(sequences), count)
    return Step(
        tokens=np.random.default_rng(1).integers(0, runner.vocab_size, len(positions)).astype("i4"),
        positions=positions,
        slots=blocks[owners, positions // size] * size + positions % size,
        starts=np.arange(sequences + 1, dtype=np.int32) * count,
        lengths=np.full(sequences, before + count, np.int32),
        blocks=blocks,
        rows=(np.arange(1, sequences + 1, dtype=np.int32) * count - 1),
    )


def fill(runner: NativeRunner, step: Step) -> None:
    """Write something to every place of the step's blocks: memory never written is not read."""
    size = runner.block_size
    places = step.blocks.reshape(-1, 1) * size + np.arange(size, dtype=np.int32)
    slots = places.reshape(-1).astype(np.int32)
    for begin in range(0, len(slots), runner.max_tokens):
        some = slots[begin : begin + runner.max_tokens]
        count = len(some)
        runner.forward(
            Step(
                tokens=some % runner.vocab_size,
                positions=np.zeros(count, np.int32),
                slots=some,
                starts=np.arange(count + 1, dtype=np.int32),
                lengths=np.ones(count, np.int32),
                blocks=(some // size).reshape(-1, 1),
                rows=np.zeros(0, np.int32),
            )
        )


def best(call: Callable[[], object], seconds: float) -> float:
    """The shortest time of one call: others use the machine too."""
    end, shortest = time.perf_counter() + seconds, float("inf")
    while (begin := time.perf_counter()) < end:
        call()
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest


if __name__ == "__main__":
    main()

"""`python -m benchmarks.llm_gpu`: how fast a GPU runs a language model, and how fast it could.

The weights are random and have the shape of a real model; nothing is fetched. Decode and prefill
are steps of the runner alone; the last table is the whole engine. The roofline is what the bytes
that a step must read take at the bandwidth of a copy on the same GPU.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch

from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.cache import bytes_per_token
from naiad_backends.llm.engine.engine import Engine
from naiad_backends.llm.engine.runner import Ints, Runner, Step
from naiad_backends.llm.engine.runners import make_runner
from naiad_backends.llm.engine.sampler import Sampler
from naiad_backends.llm.messages import Add
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MODELS: dict[str, dict[str, Any]] = {"qwen3-0.6b": QWEN3, "llama-3.1-8b": LLAMA3}
MAX_MODEL_LEN = 4096
STEPS = 50


@dataclass(frozen=True, slots=True)
class Machine:
    """bandwidth: bytes per second of a copy, read and written."""

    device: str
    bandwidth: float


@click.command()
@click.option("--model", type=click.Choice(list(MODELS)), default="qwen3-0.6b", show_default=True)
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--batches", default="1,8,32,64,128,256", show_default=True)
@click.option("--context", default=1024, show_default=True, help="Tokens of each text in a decode.")
@click.option("--requests", default=256, show_default=True, help="Of the whole engine.")
@click.option("--eager", is_flag=True, help="No CUDA graphs.")
def main(model: str, device: str, batches: str, context: int, requests: int, eager: bool) -> None:
    """Measure decode, prefill and many requests at once."""
    if not torch.cuda.is_available():
        raise click.ClickException("there is no GPU that torch can use")
    machine = Machine(device, bandwidth(device))
    options = Options(load_format="dummy", max_model_len=MAX_MODEL_LEN, enforce_eager=eager)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODELS[model]))
        checkpoint = open_checkpoint(Path(folder), "dummy")
        started = time.perf_counter()
        runner = make_runner(checkpoint, options, device)
    name = torch.cuda.get_device_name(device)
    print(f"{model} on {name}: {runner.description}")
    print(f"copy {machine.bandwidth / 1e12:.2f} TB/s, torch {torch.__version__}")
    print(f"loaded in {time.perf_counter() - started:.1f} s, {runner.blocks} blocks of KV cache")
    for line in decode(runner, checkpoint, machine, list(map(int, batches.split(","))), context):
        print(line)
    for line in prefill(runner, checkpoint):
        print(line)
    for line in mixed(runner, options, requests):
        print(line)
    for line in published(runner, options):
        print(line)


def bandwidth(device: str) -> float:
    """Of a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / seconds(lambda: target.copy_(source), 10)


def decode(
    runner: Runner, checkpoint: Checkpoint, machine: Machine, batches: list[int], context: int
) -> Iterator[str]:
    """Steps with one token of each text, sampled greedily."""
    fixed = weight_bytes(checkpoint)
    text = bytes_per_token(checkpoint.decoder, 2) * context
    yield f"\ndecode, {context} tokens each\nbatch   tok/s   ms/step   of the roofline"
    for batch in batches:
        sampler = runner.make_sampler()
        for number in range(batch):
            sampler.add(number, Sampling(temperature=0), [0])
        step = step_of(runner, np.full(batch, 1, np.int32), np.full(batch, context, np.int32))
        each = seconds(partial(one, runner, sampler, step), STEPS)
        least = (fixed + batch * text) / machine.bandwidth
        yield f"{batch:5} {batch / each:7.0f} {each * 1e3:9.3f} {least / each:10.0%}"


def one(runner: Runner, sampler: Sampler, step: Step) -> None:
    """Nobody reads the tokens."""
    sampler.sample(runner.forward(step), range(len(step.lengths)))


def prefill(runner: Runner, checkpoint: Checkpoint) -> Iterator[str]:
    """Steps with whole prompts."""
    flops = 2 * sum(np.prod(shape) for shape in matrices(checkpoint))
    yield "\nprefill\nprompts  tokens    tok/s   TFLOP/s in matrices"
    for prompts, length in ((1, 512), (1, 2048), (4, 2048), (16, 512)):
        counts = np.full(prompts, length, np.int32)
        step = step_of(runner, counts, counts)
        each = seconds(partial(runner.forward, step), 5)
        rate = prompts * length / each
        yield f"{prompts:7} {length:7} {rate:8.0f} {rate * flops / 1e12:8.0f}"


def mixed(runner: Runner, options: Options, requests: int) -> Iterator[str]:
    """Requests of random lengths that all come at once, through the engine."""
    random = np.random.default_rng(0)
    prompts = random.integers(32, 1024, requests)
    answers = random.integers(32, 512, requests)
    yield f"\n{requests} requests at once, prompts of 32 to 1023 and answers of 32 to 511 tokens"
    sampling = Sampling(temperature=0.8, top_p=0.95)
    adds = asked(runner, prompts.tolist(), answers.tolist(), sampling)
    serve(runner, options, adds)  # records the graphs
    yield told(adds, serve(runner, options, adds))


def published(runner: Runner, options: Options) -> Iterator[str]:
    """The load for which vLLM's authors tell 24.7 requests/s, 12,668 tokens/s with prompts, of
    Llama 3 8B on an H100 (vllm-project/vllm, pull request 7117)."""
    adds = asked(runner, [256] * 1000, [256] * 1000, Sampling(temperature=1.0))
    yield f"\n1000 requests of 256 tokens, answers of 256, {options.max_num_seqs} at a time"
    yield told(adds, serve(runner, options, adds))


def asked(runner: Runner, prompts: list[int], answers: list[int], sampling: Sampling) -> list[Add]:
    """Requests with random prompts of these lengths."""
    random = np.random.default_rng(0)
    return [
        Add(
            number,
            random.integers(0, runner.vocab_size, prompt).tolist(),
            msgspec.structs.replace(sampling, seed=number, max_tokens=answer),
        )
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


def told(adds: list[Add], seconds: float) -> str:
    """What was done in so many seconds."""
    written = sum(add.sampling.max_tokens for add in adds)
    whole = written + sum(len(add.prompt) for add in adds)
    rates = len(adds) / seconds, written / seconds, whole / seconds
    return "{:.1f} requests/s, {:.0f} tok/s written, {:.0f} with prompts".format(*rates)


def serve(runner: Runner, options: Options, adds: list[Add]) -> float:
    """Seconds until all are answered, by an engine that has cached nothing."""
    engine = Engine(runner, runner.make_sampler(), options)
    for add in adds:
        engine.add(add)
    started = time.perf_counter()
    while not engine.idle:
        engine.step()
    return time.perf_counter() - started


def step_of(runner: Runner, counts: Ints, lengths: Ints) -> Step:
    """The last `counts` tokens of texts of these lengths, each in blocks of its own as long as
    there are enough."""
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    owner = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(starts[-1]) - starts[owner] + (lengths - counts)[owner]
    width = -(-int(lengths.max()) // runner.block_size)
    blocks = 1 + np.arange(len(counts) * width).reshape(-1, width) % (runner.blocks - 1)
    size = runner.block_size
    slots = blocks[owner, positions // size] * size + positions % size
    return Step(
        np.ones(starts[-1], np.int32),
        positions.astype(np.int32),
        slots.astype(np.int32),
        starts,
        lengths,
        blocks.astype(np.int32),
        starts[1:] - 1,
    )


def matrices(checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    """Those that every token is multiplied by."""
    return [
        tensor.shape
        for name, tensor in checkpoint.tensors.items()
        if name.startswith("layers.") and len(tensor.shape) == 2
    ]


def weight_bytes(checkpoint: Checkpoint) -> int:
    """What a step reads of the weights in BF16, the output matrix among them."""
    a = checkpoint.decoder
    layers = sum(int(np.prod(shape)) for shape in matrices(checkpoint))
    return 2 * (layers + a.vocab_size * a.hidden_size)


def seconds(call: Callable[[], Any], times: int) -> float:
    """Of one call, after three that do not count."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


if __name__ == "__main__":
    main()

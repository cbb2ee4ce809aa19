"""What only a GPU shows: CUDA graphs, steps under way at once, BF16, and how memory is divided."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.llm.models.families import make, save

from naiad_backends.errors import NaiadError
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.engine import Engine
from naiad_backends.llm.engine.runner import Runner
from naiad_backends.llm.engine.runners import make_runner
from naiad_backends.llm.messages import Add
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

if not torch.cuda.is_available():
    pytest.skip("there is no GPU that torch can use", allow_module_level=True)

OPTIONS = Options(
    dtype="float32", kv_cache_memory_bytes=64 << 20, max_num_seqs=40, max_num_batched_tokens=256
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads as real ones have them."""
    model = make("qwen3", hidden_size=256, head_dim=64, intermediate_size=512)
    return save(model, tmp_path_factory.mktemp("model"))


def runner_of(folder: Path, device: str = "cuda:0", **changes: object) -> Runner:
    return make_runner(open_checkpoint(folder), replace(OPTIONS, **changes), device)  # type: ignore[arg-type]


def requests(count: int) -> list[Add]:
    """Prompts and answers of every length; greedy ones, and draws of every kind."""
    kinds = [
        Sampling(temperature=0),
        Sampling(top_k=20),
        Sampling(top_p=0.9),
        Sampling(min_p=0.05),
        Sampling(temperature=0, repetition_penalty=1.3),
    ]
    return [
        Add(
            number,
            [3 + (number * 7 + i) % 90 for i in range(1 + number * 3 % 60)],
            Sampling(
                temperature=kinds[number % 5].temperature,
                top_k=kinds[number % 5].top_k,
                top_p=kinds[number % 5].top_p,
                min_p=kinds[number % 5].min_p,
                repetition_penalty=kinds[number % 5].repetition_penalty,
                seed=number,
                max_tokens=1 + number * 5 % 40,
            ),
        )
        for number in range(count)
    ]


def write(runner: Runner, adds: list[Add]) -> dict[int, list[int]]:
    engine = Engine(runner, runner.make_sampler(), OPTIONS)
    for add in adds:
        engine.add(add)
    texts: dict[int, list[int]] = {add.number: [] for add in adds}
    while not engine.idle:
        for output in engine.step():
            assert not output.error
            texts[output.number] += output.tokens
    assert engine.stats().kv_usage == 0
    return texts


def test_graphs_overlap_and_a_cpu_write_the_same(folder: Path) -> None:
    """In float32, where rounding hardly ever decides: a few of a hundred texts may differ."""
    adds = requests(100)
    wanted = write(runner_of(folder, "cpu", cpu_kernels="torch"), adds)
    for eager in (False, True):
        found = write(runner_of(folder, enforce_eager=eager), adds)
        same = sum(found[number] == wanted[number] for number in wanted)
        assert same >= 97, (eager, same)


def test_bf16_writes_the_same_with_and_without_graphs(folder: Path) -> None:
    adds = requests(30)
    graphs, eager = (
        write(runner_of(folder, dtype="bfloat16", enforce_eager=eager), adds)
        for eager in (False, True)
    )
    assert sum(graphs[number] == eager[number] for number in graphs) >= 28


def test_the_cache_leaves_the_rest_of_the_memory_alone(folder: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    runner = runner_of(folder, kv_cache_memory_bytes=0, gpu_memory_utilization=0.3)
    assert runner.blocks > 1
    assert torch.cuda.memory_reserved(0) <= 0.3 * total
    runner.close()


def test_too_little_memory_is_an_error(folder: Path) -> None:
    with pytest.raises(NaiadError, match="gpu_memory_utilization"):
        runner_of(folder, kv_cache_memory_bytes=0, gpu_memory_utilization=0.001)

"""The runner, kernels and all, against transformers; the engine over it against one on a CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.llm.models.families import FAMILIES, logits, make, save
from tests.unit.llm.models.stepping import Stepper, Text

from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.engine import Engine
from naiad_backends.llm.engine.runners import limited
from naiad_backends.llm.engine.sampler import Sampler
from naiad_backends.llm.gpu.runner import GpuRunner, largest_step
from naiad_backends.llm.gpu.sampler import GpuSampler
from naiad_backends.llm.messages import Add
from naiad_backends.llm.models.runner import TorchRunner
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

OPTIONS = Options(
    dtype="float32",
    block_size=4,
    kv_cache_memory_bytes=1 << 20,
    max_model_len=64,
    max_num_seqs=4,
    max_num_batched_tokens=16,
)
TOKENS = torch.randint(3, 97, (12,), generator=torch.Generator().manual_seed(1)).tolist()
SOME = ["qwen3", "gemma2", "phi3-partial"]
TOLERANCE = 3e-4 if torch.cuda.is_available() else 1e-4
"""Of logits; a GPU's exponentials are less exact."""


def runner_of(folder: Path, device: torch.device) -> GpuRunner:
    return GpuRunner(limited(open_checkpoint(folder), OPTIONS), OPTIONS, str(device))


@pytest.mark.parametrize("name", FAMILIES if torch.cuda.is_available() else SOME)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path, device: torch.device) -> None:
    model = make(name, num_hidden_layers=2)
    expected = logits(model, TOKENS)
    stepper = Stepper(runner_of(save(model, tmp_path), device))
    one, two = Text(), Text()

    begun = stepper.step((one, TOKENS[:8]))
    mixed = stepper.step((one, TOKENS[8:9]), (two, TOKENS[:3]))
    singles = stepper.step((two, TOKENS[3:4]), (one, TOKENS[9:10]))

    for found, wanted in (
        (begun[0], expected[:8]),
        (mixed[0], expected[8:9]),
        (mixed[1], expected[:3]),
        (singles[0], expected[3:4]),
        (singles[1], expected[9:10]),
    ):
        torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def write(engine: Engine, requests: list[Add]) -> dict[int, tuple[list[int], str]]:
    """Run to the end: the texts and why they end."""
    for request in requests:
        engine.add(request)
    texts: dict[int, list[int]] = {request.number: [] for request in requests}
    ends = {}
    while not engine.idle:
        for output in engine.step():
            texts[output.number] += output.tokens
            if output.finish:
                ends[output.number] = output.finish
    return {number: (texts[number], ends[number]) for number in texts}


def test_an_engine_that_overlaps_writes_the_same(tmp_path: Path, device: torch.device) -> None:
    """Greedy, drawn, with penalties, with a stop token; more than run at once."""
    checkpoint = limited(
        open_checkpoint(save(make("llama", num_hidden_layers=1), tmp_path)), OPTIONS
    )
    options = replace(OPTIONS, max_num_seqs=3)
    samplings = [
        Sampling(temperature=0, max_tokens=5),
        Sampling(top_k=20, seed=1, max_tokens=4),
        Sampling(top_p=0.9, min_p=0.01, seed=2, max_tokens=4),
        Sampling(temperature=0, repetition_penalty=1.5, presence_penalty=0.5, max_tokens=4),
    ]
    adds = [Add(n, TOKENS[: 3 + n], sampling) for n, sampling in enumerate(samplings)]
    plain = TorchRunner(checkpoint, options)
    wanted = write(Engine(plain, plain.make_sampler(), options), adds)
    greedy = wanted[0][0]
    stop = greedy[2]
    stopping = Sampling(temperature=0, max_tokens=5, stop=[stop])

    runner = GpuRunner(checkpoint, options, str(device))
    engine = Engine(runner, runner.make_sampler(), options)
    found = write(engine, [*adds, Add(4, adds[0].prompt, stopping)])

    assert found.pop(4) == (greedy[: greedy.index(stop) + 1], "stop")
    assert found == wanted
    assert engine.stats().kv_usage == 0


def test_logprobs_and_rows_that_fail(device: torch.device) -> None:
    """As the sampler of a CPU says them."""
    values = torch.randn(3, 40, generator=torch.Generator().manual_seed(3))
    values[1] = -torch.inf
    samplings = [
        Sampling(temperature=0, logprobs=2, logit_bias={7: 100.0}),
        Sampling(temperature=0, logprobs=1),
        Sampling(temperature=0),
    ]
    chosen = torch.zeros(3, dtype=torch.int32, device=device)
    ours, theirs = GpuSampler(40, chosen), Sampler(40)
    for number, sampling in enumerate(samplings):
        ours.add(number, sampling, [1])
        theirs.add(number, sampling, [1])

    found = ours.sample(values.clone().to(device), [0, 1, 2])
    wanted = theirs.sample(values.clone().numpy(), [0, 1, 2])

    assert found.tokens == wanted.tokens == [7, -1, int(values[2].argmax())]
    assert found.failed == wanted.failed
    assert found.scored == wanted.scored
    assert chosen.tolist()[0] == 7


def test_rules_are_those_of_a_cpu(device: torch.device) -> None:
    rules = [
        Sampling(temperature=0, allowed=[3, 4, 9], logit_bias={9: -2.0, 4: 0.5}),
        Sampling(temperature=0, bad_words=[[5], [6, 7]], stop=[8, 99], min_tokens=3),
        Sampling(temperature=0, repetition_penalty=1.5, logprobs=1),
        Sampling(temperature=0, frequency_penalty=0.7, presence_penalty=-0.4),
        Sampling(temperature=0, repetition_penalty=0.6, presence_penalty=0.9),
    ]
    numbers = range(len(rules))
    chosen = torch.zeros(len(rules), dtype=torch.int32, device=device)
    ours, theirs = GpuSampler(12, chosen), Sampler(12)
    for number, sampling in enumerate(rules):
        ours.add(number, sampling, [1, 2, 2])
        theirs.add(number, sampling, [1, 2, 2])
    random = torch.Generator().manual_seed(5)

    for _ in range(8):
        values = torch.randn(len(rules), 12, generator=random)
        found = ours.sample(values.clone().to(device), numbers)
        assert found.tokens == theirs.sample(values.numpy(), numbers).tokens


def test_places_of_texts_that_left_are_given_away(device: torch.device) -> None:
    sampler = GpuSampler(10, torch.zeros(1, dtype=torch.int32, device=device))
    for number in range(3):
        sampler.add(number, Sampling(temperature=0), [1])
        logits = torch.arange(10.0, device=device)[None].roll(number)
        assert sampler.sample(logits, [number]).tokens == [int(logits.argmax())]
        sampler.remove(number)
        sampler.remove(number)


def test_the_largest_step_is_a_step(tmp_path: Path, device: torch.device) -> None:
    runner = runner_of(save(make("llama", num_hidden_layers=1), tmp_path), device)
    step = largest_step(runner, 3)
    assert step.lengths.tolist() == [5, 5, 6]
    assert step.positions.tolist() == [*range(5), *range(5), *range(6)]
    assert step.rows.tolist() == [4, 9, 15]
    assert bool(np.all(step.slots == 0))
    assert runner.forward(step).shape == (3, runner.vocab_size)

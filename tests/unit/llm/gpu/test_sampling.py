"""Tokens chosen on the device against the sampler of a CPU: the same rules, and the same numbers
wherever that one races all tokens at once."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from naiad_backends.llm.engine import draws
from naiad_backends.llm.gpu import sampling as device_sampling
from naiad_backends.llm.gpu.sampling import FORBIDDEN, INDEX, NOT_FINITE, choose, parameters
from naiad_backends.llm.sampling import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts of a row, so that a small vocabulary has several."""
    monkeypatch.setattr(device_sampling, "_PART", 64)


def sample(logits: Tensor, samplings: list[Sampling], indices: list[int]) -> list[int]:
    rows = np.stack([parameters(each) for each in samplings])
    rows[:, INDEX] = indices
    tokens = torch.zeros(len(logits), dtype=torch.int32, device=logits.device)
    choose(tokens, logits, torch.from_numpy(rows).to(logits.device))
    found: list[int] = tokens.tolist()
    return found


def rand(random: torch.Generator, rows: int, size: int, step: float = 0.0) -> Tensor:
    """Logits; multiples of `step`, so that many are equal, as those of BF16 are."""
    logits = torch.randn(rows, size, generator=random, device=random.device) * 3
    return (logits / step).round() * step if step else logits


def test_greedy_takes_the_lowest_of_the_best(random: torch.Generator) -> None:
    logits = rand(random, 4, 200)
    logits[1, [130, 70, 199]] = 50.0
    want = logits.argmax(-1).tolist()
    want[1] = 70
    assert sample(logits, [Sampling(temperature=0)] * 4, [0] * 4) == want


KINDS = [
    Sampling(top_k=1, seed=1),
    Sampling(top_k=7, seed=2**64 - 1),
    Sampling(top_k=90, temperature=2.5, seed=-3),
    Sampling(top_k=10**9, top_p=0.9, seed=4),
    Sampling(top_p=0.3, seed=5),
    Sampling(top_p=0.999, temperature=0.7, seed=6),
    Sampling(min_p=0.2, seed=7),
    Sampling(min_p=0.01, top_k=20, top_p=0.8, seed=8),
    Sampling(top_p=1e-9, seed=9),
]


@pytest.mark.parametrize("step", [0.0, 2.0])
def test_the_same_tokens_as_on_a_cpu(random: torch.Generator, step: float) -> None:
    logits = rand(random, len(KINDS), 110, step)
    want = [
        draws.draw(row, draws.key_of(s.seed, 3), s.temperature, s.top_k, s.top_p, s.min_p)
        for row, s in zip(logits.cpu().numpy(), KINDS, strict=True)
    ]
    assert sample(logits, KINDS, [3] * len(KINDS)) == want


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_may_be_chosen_and_nothing_else(random: torch.Generator, kind: Sampling) -> None:
    """The bounds say what `candidates` says, with ties."""
    logits = rand(random, 1, 110, 0.5)
    row = logits.cpu().numpy()[0]
    ids, _ = draws.candidates(row, kind.temperature, kind.top_k, kind.top_p, kind.min_p)
    bounds = torch.zeros(2, device=logits.device)
    last = torch.zeros(1, dtype=torch.int32, device=logits.device)
    rows = torch.from_numpy(parameters(kind)).to(logits.device)
    device_sampling._bounds_kernel[(1,)](bounds, last, logits, rows, 110, COLUMNS=8, BLOCK=64)
    best, pivot = bounds.tolist()
    assert best == row.max()
    numbers = np.arange(len(row))
    kept = (row > pivot) | ((row == pivot) & (numbers <= last.item()))
    assert set(numbers[kept]) == set(ids)


def test_a_race_of_the_whole_vocabulary(random: torch.Generator) -> None:
    logits = rand(random, 5, 110)
    kinds = [Sampling(temperature=1.7, seed=seed) for seed in range(5)]
    weights = (logits.double() / 1.7).softmax(-1).cpu().numpy()
    times = [-np.log(draws.uniforms(draws.key_of(s.seed, 9), np.arange(110))) for s in kinds]
    assert sample(logits, kinds, [9] * 5) == (np.stack(times) / weights).argmin(-1).tolist()


def test_times_of_the_race_are_those_of_a_cpu(device: torch.device) -> None:
    """Also where they are small: a token that is chosen once in a million is chosen so often."""
    ids = np.arange(500)
    times = -np.log(draws.uniforms(draws.key_of(5, 6), ids))
    logits = torch.from_numpy(np.log(times).astype(np.float32))[None].to(device)
    # Every token arrives at the same time but one, which is a little faster.
    for token in times.argsort()[:2]:
        faster = logits.clone()
        faster[0, token] += 1e-3
        assert sample(faster, [Sampling(seed=5)], [6]) == [token]


def test_rows_without_a_token(device: torch.device) -> None:
    logits = torch.zeros(6, 100, device=device)
    logits[0:2, 77] = math.nan
    logits[2:4, 77] = math.inf
    logits[4:6] = -math.inf
    kinds = [Sampling(temperature=0), Sampling(top_k=3, top_p=0.5)] * 3
    wanted = [NOT_FINITE] * 4 + [FORBIDDEN] * 2
    assert sample(logits, kinds, [0] * 6) == wanted


def test_forbidden_tokens_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((8, 130), -math.inf, device=device)
    logits[:, 129] = -1e4
    kinds = [Sampling(), Sampling(top_p=0.5), Sampling(top_k=5), Sampling(min_p=0.5)] * 2
    assert sample(logits, kinds, list(range(8))) == [129] * 8


def test_tiny_temperatures_are_greedy(random: torch.Generator) -> None:
    logits = rand(random, 2, 150)
    kinds = [Sampling(temperature=1e-6), Sampling(temperature=1e-6, top_k=4, top_p=0.9)]
    assert sample(logits, kinds, [0, 0]) == logits.argmax(-1).tolist()

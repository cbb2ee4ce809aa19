"""The engine of models that embed: every text is answered once, in any mixture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.llm.models.encoders import Floats, hidden, make

from naiad_backends.errors import NaiadError
from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.pooling import Pooling
from naiad_backends.llm.messages import Abort, Add, Output, Outputs, Pool, Vectors
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bert")
    make(made, "bert")
    return made


def engine(folder: Path, **options: Any) -> Pooling:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint.architecture, Encoder)
    return Pooling(checkpoint, checkpoint.architecture, Options(**options), "cpu")


def answers(pooling: Pooling) -> tuple[dict[int, Floats], list[Output], list[int]]:
    """Vectors, errors, and how many texts each step had."""
    vectors: dict[int, Floats] = {}
    errors: list[Output] = []
    steps = []
    while not pooling.idle:
        message = pooling.run()
        if isinstance(message, Outputs):
            errors += message.outputs
            continue
        assert isinstance(message, Vectors)
        steps.append(len(message.numbers))
        rows = np.frombuffer(message.data, "<f4").reshape(len(message.numbers), -1)
        for number, row in zip(message.numbers, rows, strict=True):
            assert number not in vectors
            vectors[number] = row
    return vectors, errors, steps


def test_texts_get_the_vectors_that_they_get_alone(folder: Path) -> None:
    texts = {number: [1 + number % 90] * (1 + number * 7 % 30) for number in range(25)}
    pooling = engine(folder, max_num_batched_tokens=64)
    for number, tokens in texts.items():
        pooling.take(Pool(number, tokens))
    together, errors, steps = answers(pooling)
    assert not errors and together.keys() == texts.keys() and len(steps) > 3
    for number, tokens in texts.items():
        pooling.take(Pool(number, tokens))
        alone, _, _ = answers(pooling)
        np.testing.assert_allclose(together[number], alone[number], atol=1e-5)


def test_a_step_has_a_budget_and_at_least_one_text(folder: Path) -> None:
    pooling = engine(folder, max_num_batched_tokens=10, max_num_seqs=3)
    for number, length in enumerate([4, 6, 1, 30, 1, 1, 1, 1]):
        pooling.take(Pool(number, [3] * length))
    assert answers(pooling)[2] == [2, 1, 1, 3, 1]


def test_what_nobody_waits_for_is_not_computed(folder: Path) -> None:
    pooling = engine(folder)
    for number in range(4):
        pooling.take(Pool(number, [3]))
    pooling.take(Abort([1, 3, 99]))
    assert answers(pooling)[0].keys() == {0, 2}


def test_mistakes_are_answered(folder: Path) -> None:
    pooling = engine(folder, max_model_len=5)
    assert pooling.ready.max_model_len == 5 and pooling.ready.dimensions == 32
    for number, tokens in enumerate([[], [1] * 6, [100], [-1], [5]]):
        pooling.take(Pool(number, tokens))
    pooling.take(Add(9, [1], Sampling()))
    vectors, errors, _ = answers(pooling)
    assert vectors.keys() == {4}
    assert [error.number for error in errors] == [0, 1, 2, 3, 9]
    assert all(error.finish == "error" and error.error for error in errors)


def test_a_lost_step_costs_its_texts_only(folder: Path) -> None:
    pooling = engine(folder, max_num_batched_tokens=2)
    pooling.take(Pool(0, [3, 3]))
    pooling.take(Pool(1, [3, 3]))
    pooling.run()
    lost = pooling.fail("out of memory")
    assert isinstance(lost, Outputs)
    assert [(one.number, one.error) for one in lost.outputs] == [(0, "out of memory")]
    assert answers(pooling)[0].keys() == {1}


def test_a_length_that_the_model_cannot_is_refused(folder: Path) -> None:
    with pytest.raises(NaiadError, match="41 is more than the 40 tokens"):
        engine(folder, max_model_len=41)


def test_the_vector_is_the_model_s_own(folder: Path, tmp_path: Path) -> None:
    pooling = engine(folder)
    pooling.take(Pool(0, [4, 5, 6]))
    states = hidden(make(tmp_path, "bert"), [4, 5, 6]).mean(0)
    np.testing.assert_allclose(answers(pooling)[0][0], states / np.linalg.norm(states), atol=1e-5)


def test_a_vector_that_is_not_finite_costs_its_own_text(tmp_path: Path) -> None:
    model = make(tmp_path, "bert")
    model.embeddings.word_embeddings.weight.data[7] = float("inf")
    model.save_pretrained(tmp_path)
    pooling = engine(tmp_path)
    for number, tokens in enumerate(([5, 6], [7, 5], [8])):
        pooling.take(Pool(number, tokens))
    vectors, errors, _ = answers(pooling)
    assert vectors.keys() == {0, 2}
    assert [(one.number, "not finite" in one.error) for one in errors] == [(1, True)]

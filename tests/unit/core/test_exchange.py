"""Which instances are kept when a configuration changes, and what becomes of the others."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from naiad.core.loading import LoadedModel, exchange, load
from naiad.core.model import ServedModel
from naiad.repository.config import ModelConfig
from naiad.repository.layout import ModelFolder
from naiad_backends.api import (
    Backend,
    Execution,
    Instance,
    Model,
    ModelSpec,
    Placement,
    Request,
    Response,
)

CONFIG = """
backend: "noting"
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""
TWO_GPUS = "instance_group { kind: KIND_GPU gpus: [0, 1] count: 2 }"


class Noting(Backend, Model):
    """Notes which instances were made, and which were closed."""

    def __init__(self) -> None:
        super().__init__({})
        self.made: list[Placement] = []
        self.closed: list[Placement] = []

    def gpus(self) -> Sequence[int]:
        return (0, 1, 2)

    def complete(self, spec: ModelSpec) -> None:
        return None

    def load(self, spec: ModelSpec) -> Model:
        return self

    def instance(self, placement: Placement) -> Instance:
        self.made.append(placement)
        return NotingInstance(self, placement)

    def close(self) -> None:
        self.closed.append(Placement("model"))


class NotingInstance(Instance):
    def __init__(self, backend: Noting, placement: Placement) -> None:
        self._backend = backend
        self.placement = placement

    def execute(self, requests: Sequence[Request]) -> Execution:
        return Execution([Response() for _ in requests])

    def close(self) -> None:
        self._backend.closed.append(self.placement)


def configuration(folder: Path, text: str) -> tuple[ModelConfig, ModelSpec]:
    model = folder / "m"
    (model / "1").mkdir(parents=True, exist_ok=True)
    (model / "config.pbtxt").write_text(CONFIG + text)
    found = ModelFolder.at(model)
    config = ModelConfig.read(found).with_defaults((0, 1, 2), 1)
    config.validate()
    return config, config.spec(1, found)


def loaded(folder: Path, text: str) -> tuple[Noting, LoadedModel]:
    backend = Noting()
    return backend, load(backend, *configuration(folder, text))


def names(placements: Sequence[Placement]) -> list[str]:
    return [f"{place.name}@{place.device}" for place in placements]


@pytest.mark.parametrize(
    ("after", "made", "removed"),
    [
        (TWO_GPUS, [], []),
        (TWO_GPUS.replace("count: 2", "count: 2 name: 'other'"), [], []),
        (TWO_GPUS.replace("2", "3"), ["m_0_2@0", "m_0_5@1"], []),
        (TWO_GPUS.replace("2", "1"), [], ["m_0_1@0", "m_0_3@1"]),
        ("instance_group { kind: KIND_GPU gpus: 1 }", [], ["m_0_0@0", "m_0_1@0", "m_0_3@1"]),
        (
            "instance_group { kind: KIND_GPU gpus: 1 rate_limiter { priority: 2 } }",
            ["m_0_0@1"],
            ["m_0_0@0", "m_0_1@0", "m_0_2@1", "m_0_3@1"],
        ),
        ("version_policy { all { } } " + TWO_GPUS, [], []),
    ],
)
async def test_what_is_alike_is_kept(
    tmp_path: Path, after: str, made: list[str], removed: list[str]
) -> None:
    backend, before = loaded(tmp_path, TWO_GPUS)
    served = ServedModel(before)
    backend.made.clear()
    change = served.exchange(*configuration(tmp_path, after))
    assert change is not None
    served.apply(change, served.make(change), [])
    assert names(backend.made) == made
    await served.retire()
    assert sorted(names(backend.closed)) == removed
    await asyncio.to_thread(served.close)
    assert backend.closed[-1].name == "model"
    assert len(backend.closed) == 4 + len(made) + 1


@pytest.mark.parametrize(
    "after",
    [
        "instance_group { kind: KIND_GPU gpus: [0, 2] }",
        "instance_group { kind: KIND_CPU }",
        TWO_GPUS + "parameters { key: 'a' value { string_value: 'b' } }",
        TWO_GPUS + "max_batch_size: 2",
    ],
)
def test_everything_else_needs_a_load(tmp_path: Path, after: str) -> None:
    _, before = loaded(tmp_path, TWO_GPUS)
    assert exchange(before, *configuration(tmp_path, after)) is None


def test_files_that_came_with_a_load_are_others(tmp_path: Path) -> None:
    _, before = loaded(tmp_path / "here", TWO_GPUS)
    assert exchange(before, *configuration(tmp_path / "there", TWO_GPUS)) is None

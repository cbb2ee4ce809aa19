"""Model parameters to session settings, and how threads share the cores."""

from pathlib import Path

import pytest

from naiad_backends.api import ModelSpec, Placement
from naiad_backends.errors import Code, NaiadError
from naiad_backends.onnx.devices import cpu_cores, cuda_devices
from naiad_backends.onnx.options import SessionSettings, session_settings

CPU, GPU = Placement("c"), Placement("g", "GPU", 1)


def settings(
    parameters: dict[str, str] | None = None,
    placements: tuple[Placement, ...] = (CPU,),
    place: Placement = CPU,
    cores: int = 8,
) -> SessionSettings:
    spec = ModelSpec("m", 1, Path(), parameters=parameters or {}, placements=placements)
    return session_settings(spec, place, cores)


@pytest.mark.parametrize(
    ("cores", "instances", "threads"), [(8, 1, 8), (8, 2, 7), (2, 2, 1), (2, 5, 1), (1, 1, 1)]
)
def test_callers_and_pool_use_each_core_once(cores: int, instances: int, threads: int) -> None:
    places = (CPU,) * instances + (GPU,)
    assert settings(placements=places, cores=cores).intra_threads == threads


def test_defaults() -> None:
    assert settings() == SessionSettings(
        intra_threads=8, entries={"session.intra_op.allow_spinning": "0"}
    )


def test_every_parameter() -> None:
    made = settings(
        {
            "intra_op_thread_count": "3",
            "inter_op_thread_count": "2",
            "execution_mode": "1",
            "enable_mem_arena": "1",
            "enable_mem_pattern": "0",
            "memory.enable_memory_arena_shrinkage": "cpu:0;gpu:0",
            "session.use_device_allocator_for_initializers": "1",
            "session.intra_op.allow_spinning": "1",
            "something_else": "ignored",
        }
    )
    assert made == SessionSettings(
        intra_threads=3,
        inter_threads=2,
        parallel=True,
        pattern=False,
        entries={
            "session.intra_op.allow_spinning": "1",
            "session.use_device_allocator_for_initializers": "1",
        },
        run_entries={"memory.enable_memory_arena_shrinkage": "cpu:0"},
    )


def test_the_parallel_mode_gets_a_pool() -> None:
    assert settings({"execution_mode": "1"}).inter_threads == 0
    assert settings({"execution_mode": "0"}).inter_threads == 1


def test_only_arenas_that_exist_shrink() -> None:
    both = {"memory.enable_memory_arena_shrinkage": "cpu:0;gpu:1"}
    shrunk = settings(both, (GPU,), GPU).run_entries
    assert shrunk == {"memory.enable_memory_arena_shrinkage": "cpu:0;gpu:1"}
    assert settings(both | {"enable_mem_arena": "0"}).run_entries == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intra_op_thread_count", "-1"),
        ("intra_op_thread_count", "two"),
        ("intra_op_thread_count", "99999"),
        ("inter_op_thread_count", "1.0"),
        ("execution_mode", "2"),
        ("enable_mem_arena", "yes"),
        ("enable_mem_pattern", ""),
        ("memory.enable_memory_arena_shrinkage", "1"),
        ("session.use_device_allocator_for_initializers", "on"),
        ("session.intra_op.allow_spinning", "3"),
    ],
)
def test_values_that_cannot_be(key: str, value: str) -> None:
    with pytest.raises(NaiadError) as caught:
        settings({key: value})
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == f'parameters["{key}"]'
    assert f"'{value}'" in str(caught.value)


def test_devices_of_this_machine() -> None:
    assert cpu_cores() >= 1
    gpus = cuda_devices()
    assert gpus == list(range(len(gpus)))

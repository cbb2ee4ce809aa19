"""Session settings from a model's parameters; a pure mapping with Triton's names.

Two defaults are our own, because all instances of a model share one session (its weights are held
once) and call it from their own threads:

Threads: a session's pool of N threads is N - 1 of its own plus the caller. With I instances and C
cores N = C - I + 1, so that callers and pool together fill each core once.

Spinning: off. The pool's threads otherwise burn a core for milliseconds after each run: at 100
requests/s of a 70 µs model on 2 cores, 10.9 ms of CPU time per request instead of 0.5. The price
is a wake-up of some 60 µs for runs that use the pool; `session.intra_op.allow_spinning` = 1 brings
it back.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from naiad_backends.api import ModelSpec, Placement
from naiad_backends.errors import NaiadError, invalid

_SPINNING = "session.intra_op.allow_spinning"
_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_FLAGS = ("session.use_device_allocator_for_initializers", _SPINNING)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session is made with.

    intra_threads, inter_threads: pool sizes, the caller included; 0 leaves it to onnxruntime.
    parallel: run independent nodes of the graph side by side, on the inter-op pool.
    arena, pattern: keep freed memory; plan it from the shapes seen.
    graph_level: as in `optimization.graph.level`: -1 basic, 1 extended, 2 off, else all.
    entries, run_entries: onnxruntime's own keys for a session and for each run.
    """

    intra_threads: int = 1
    inter_threads: int = 1
    parallel: bool = False
    arena: bool = True
    pattern: bool = True
    graph_level: int = 0
    entries: Mapping[str, str] = field(default_factory=dict)
    run_entries: Mapping[str, str] = field(default_factory=dict)


# For reading a graph's inputs and outputs: no work that only later runs would profit from.
FOR_READING = SessionSettings(graph_level=2, entries={"session.disable_prepacking": "1"})


def session_settings(spec: ModelSpec, placement: Placement, cores: int) -> SessionSettings:
    """The settings of the session that serves all instances at this placement's device.

    cores: how many the process may use.  Raises INVALID_ARG for a value that cannot be.
    """
    here = (placement.kind, placement.device)
    instances = sum((place.kind, place.device) == here for place in spec.placements)
    parameters = spec.parameters
    arena = _flag(parameters, "enable_mem_arena", True)
    parallel = _flag(parameters, "execution_mode", False)
    for key in _FLAGS:
        _flag(parameters, key, False)
    return SessionSettings(
        intra_threads=_count(parameters, "intra_op_thread_count", max(1, cores - instances + 1)),
        inter_threads=_count(parameters, "inter_op_thread_count", 0 if parallel else 1),
        parallel=parallel,
        arena=arena,
        pattern=_flag(parameters, "enable_mem_pattern", True),
        graph_level=spec.graph_level,
        entries={_SPINNING: "0"}
        | {key: value for key, value in parameters.items() if key.startswith("session.")},
        run_entries=_shrinkage(parameters, arena, placement),
    )


def _count(parameters: Mapping[str, str], key: str, default: int) -> int:
    text = parameters.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 5):
        raise _bad(key, text, "use a whole number below 10000; 0 leaves it to onnxruntime")
    return int(text)


def _flag(parameters: Mapping[str, str], key: str, default: bool) -> bool:
    text = parameters.get(key)
    if text is None:
        return default
    if text not in ("0", "1"):
        raise _bad(key, text, "use 0 or 1")
    return text == "1"


def _shrinkage(parameters: Mapping[str, str], arena: bool, placement: Placement) -> dict[str, str]:
    text = parameters.get(_SHRINKAGE)
    if text is None:
        return {}
    if re.fullmatch(r"(cpu|gpu):\d+(;(cpu|gpu):\d+)*;?", text) is None:
        raise _bad(_SHRINKAGE, text, "use a list such as cpu:0;gpu:0")
    # onnxruntime refuses every run when a device in the list has no arena in this session.
    present = {f"gpu:{placement.device}"} if placement.kind == "GPU" else set()
    if arena:
        present.add("cpu:0")
    shrink = [part for part in text.split(";") if part in present]
    return {_SHRINKAGE: ";".join(shrink)} if shrink else {}


def _bad(key: str, text: str, hint: str) -> NaiadError:
    return invalid(f"'{text}' cannot be the value", field=f'parameters["{key}"]', hint=hint)

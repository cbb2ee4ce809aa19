"""The native library's functions, as ctypes sees them. Callers check their arguments."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from naiad_backends.errors import unsupported
from naiad_backends.llm.native import build


class Config(Structure):
    """Config of src/model.h."""

    _fields_ = (
        *((name, c_int) for name in ("vocab", "hidden", "intermediate", "heads", "kv_heads")),
        *((name, c_int) for name in ("head_dim", "layers", "ropes", "pre_norm", "post_norm")),
        *((name, c_int) for name in ("qk_norm", "activation", "threads", "max_tokens")),
        *((name, c_int) for name in ("block_size", "blocks", "cache")),
        *((name, c_float) for name in ("eps", "attention_scale", "score_softcap")),
        *((name, c_float) for name in ("logit_softcap", "embedding_scale", "residual_scale")),
        ("logit_scale", c_float),
    )


class Step(Structure):
    """Step of src/model.h."""

    _fields_ = (
        *((name, c_int) for name in ("tokens", "sequences", "width", "rows")),
        *((name, c_void_p) for name in ("ids", "positions", "slots", "starts", "lengths")),
        *((name, c_void_p) for name in ("blocks", "wanted")),
    )


FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "naiad_isa": (c_char_p, []),
    "naiad_new": (c_void_p, [POINTER(Config)]),
    "naiad_delete": (None, [c_void_p]),
    "naiad_matrix": (c_int, [c_void_p, *[c_int] * 6, c_void_p, c_size_t]),
    "naiad_bias": (None, [c_void_p, c_int, c_int, c_void_p, c_int]),
    "naiad_norm": (None, [c_void_p, c_int, c_int, c_void_p, c_int]),
    "naiad_layer": (None, [c_void_p, c_int, c_int, c_int]),
    "naiad_rope": (None, [c_void_p, c_int, c_int, c_int, c_float, c_void_p]),
    "naiad_weight_bytes": (c_size_t, [c_void_p]),
    "naiad_choose": (c_int, [c_void_p, c_void_p, c_int, c_int, c_void_p, c_void_p]),
    "naiad_forward": (c_int, [c_void_p, POINTER(Step), c_void_p]),
}

Library = ctypes.CDLL
Int32 = c_int32


def load(folder: Path) -> Library:
    """The library for this CPU, built below `folder` if need be. UNSUPPORTED if that cannot be."""
    return _load(build.library(folder))


@cache
def _load(path: Path) -> Library:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise unsupported(f"the native kernels cannot be loaded: {error}") from None
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library

"""Weights in safetensors files, one or many, mapped and not read.

The format's own library checks the header (sizes, overlaps, types); NumPy maps what it describes,
for it has no bfloat16 and the library would copy.
"""

import json
import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from naiad_backends.errors import invalid, not_found, unsupported
from naiad_backends.llm.checkpoint.weights import PLAIN, Tensor, Weight

INDEX = "model.safetensors.index.json"


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors by the names in the files. INVALID_ARG names a file that is damaged, NOT_FOUND
    one that is missing."""
    index = folder / INDEX
    single = folder / "model.safetensors"
    if single.exists() or not index.exists():
        paths = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    else:
        paths = _shards(index)
    if not paths:
        raise not_found("there is no *.safetensors file", field=str(folder))
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= read_file(path)
    return tensors


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise invalid("it must have a 'weight_map' of names and files", field=str(index)) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise invalid(f"{name!r:.80} is not the name of a file", field=str(index))
        if not (index.parent / name).exists():
            raise not_found(f"the file '{name}' is missing", field=str(index))
    return [index.parent / name for name in sorted(names)]


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    try:
        with safe_open(path, "np"):
            pass
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (SafetensorError, OSError, ValueError) as error:
        raise invalid(f"the safetensors file is damaged: {error}", field=str(path)) from None
    start = 8 + int.from_bytes(content[:8], "little")
    header: Mapping[str, Any] = json.loads(content[8:start])
    return {
        name: _tensor(content, start, name, entry, path)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _tensor(
    content: mmap.mmap, start: int, name: str, entry: Mapping[str, Any], path: Path
) -> Tensor:
    shape, kind = tuple(entry["shape"]), entry["dtype"]
    offset = start + entry["data_offsets"][0]

    def read() -> Weight:
        if kind not in PLAIN:
            raise unsupported(f"the weight '{name}' has the type {kind}", field=str(path))
        data = np.frombuffer(content, PLAIN[kind], prod(shape), offset)
        return Weight(shape, kind, data.reshape(shape))

    return Tensor(shape, read)

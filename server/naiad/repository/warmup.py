"""What a configuration says of warming instances up, as plain values, and what can be wrong in it.

Knows the messages and the files of the folder `warmup`; nothing of how anything is executed.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from naiad.repository.layout import leaves
from naiad.repository.mistakes import Mistake, entry, item
from naiad_backends.datatypes import BY_CONFIG_NAME, DATATYPES
from naiad_backends.errors import NaiadError, invalid
from naiad_proto import model_config_pb2 as pb

FOLDER = "warmup"
"""The folder of a model that `input_data_file` names files of."""

_LARGEST = 2**31
"""Bytes of one tensor. A client may send a configuration, and the tensor costs memory."""

_LENGTH = struct.Struct("<I")

_TYPES = {pb.DataType.Value(name) for name in BY_CONFIG_NAME}


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """One tensor of the requests.

    path: its place in the configuration.  dims: without the batch dimension.
    file: what is in it; None for random data if `random`, else for zeros.
    """

    path: str
    name: str
    datatype: str
    dims: tuple[int, ...]
    file: Path | None = None
    random: bool = False


@dataclass(frozen=True, slots=True)
class Warmup:
    """`ModelWarmup`: `count` executions of `batch_size` requests each, at least one of both."""

    path: str
    name: str
    batch_size: int
    count: int
    inputs: tuple[WarmupInput, ...]


def warmups(config: pb.ModelConfig, folder: Path) -> tuple[Warmup, ...]:
    """What a valid configuration asks for, in order.  folder: the model's."""
    return tuple(
        Warmup(
            item("model_warmup", index),
            warmup.name,
            warmup.batch_size,
            max(1, warmup.count),
            tuple(
                _input(warmup.inputs[name], name, _input_path(index, name), folder)
                for name in warmup.inputs
            ),
        )
        for index, warmup in enumerate(config.model_warmup)
        if warmup.batch_size
    )


def _input(given: pb.ModelWarmup.Input, name: str, path: str, folder: Path) -> WarmupInput:
    kind = BY_CONFIG_NAME[pb.DataType.Name(given.data_type)]
    source = given.WhichOneof("input_data_type")
    file = folder / FOLDER / given.input_data_file if source == "input_data_file" else None
    return WarmupInput(path, name, kind.name, tuple(given.dims), file, source == "random_data")


def _input_path(index: int, name: str) -> str:
    return entry(f"{item('model_warmup', index)}.inputs", name)


def stored(file: Path, datatype: str, count: int) -> bytes:
    """The first `count` elements in a file, in the v2 binary form. Raises INVALID_ARG if it cannot
    be read or holds fewer."""
    size = DATATYPES[datatype].size
    try:
        with file.open("rb") as content:
            data = content.read(count * size if size else _LARGEST)
    except OSError as error:
        raise invalid(f"'{file.name}' cannot be read: {error.strerror}") from error
    needed = count * size if size else _end_of_elements(data, count)
    if len(data) < needed:
        what = f"{needed} bytes" if size else f"{count} strings, each behind a 4-byte length"
        raise invalid(f"'{file.name}' has {len(data)} bytes; the shape needs {what}")
    return data[:needed]


def _end_of_elements(data: bytes, count: int) -> int:
    """Where the first `count` strings end; beyond the end of the data if that cuts them off."""
    at = 0
    for _ in range(count):
        if at + 4 > len(data):
            return len(data) + 1
        at += 4 + _LENGTH.unpack_from(data, at)[0]
    return at


# -- rules


def mistakes(config: pb.ModelConfig, folder: Path) -> Iterator[Mistake]:
    """Every break of a rule.  folder: the model's."""
    needed = {tensor.name for tensor in config.input if not tensor.optional}
    types = {tensor.name: tensor.data_type for tensor in config.input}
    for index, warmup in enumerate(config.model_warmup):
        path = item("model_warmup", index)
        if not warmup.batch_size:
            continue
        largest = max(1, config.max_batch_size)
        if warmup.batch_size > largest:
            yield Mistake(
                f"{path}.batch_size", f"{warmup.batch_size} is more than {largest} that run at once"
            )
        if missing := sorted(needed - set(warmup.inputs)):
            yield Mistake(f"{path}.inputs", f"the model's input '{missing[0]}' is missing")
        for name in warmup.inputs:
            given = warmup.inputs[name]
            own = _input_path(index, name)
            found = list(_form(given, own, types.get(name, given.data_type)))
            yield from found or _data_file(given, own, folder)


def _form(given: pb.ModelWarmup.Input, path: str, wanted: int) -> Iterator[Mistake]:
    """wanted: the data type by the configuration's input."""
    if given.data_type not in _TYPES:
        yield Mistake(f"{path}.data_type", "is missing", "use one such as TYPE_FP32")
    elif given.data_type != wanted:
        name = pb.DataType.Name(given.data_type)
        yield Mistake(f"{path}.data_type", f"is {name}, which the model's input is not")
    for index, size in enumerate(given.dims):
        if size < 0:
            yield Mistake(item(f"{path}.dims", index), f"{size} is no size", "give the very size")
    if math.prod(given.dims) * 8 > _LARGEST:
        yield Mistake(f"{path}.dims", f"hold more than {_LARGEST // 8} elements", "use fewer")
    if given.WhichOneof("input_data_type") is None:
        yield Mistake(
            path, "says nothing of its data", "give zero_data, random_data or input_data_file"
        )


def _data_file(given: pb.ModelWarmup.Input, path: str, folder: Path) -> Iterator[Mistake]:
    if given.WhichOneof("input_data_type") != "input_data_file":
        return
    path = f"{path}.input_data_file"
    kind = BY_CONFIG_NAME[pb.DataType.Name(given.data_type)]
    name = given.input_data_file
    if not name or leaves(name):
        yield Mistake(path, f"'{name}' is not in the folder '{FOLDER}'", "name a file in it")
        return
    try:
        stored(folder / FOLDER / name, kind.name, math.prod(given.dims))
    except NaiadError as error:
        yield Mistake(path, error.message, f"put the data at {folder.name}/{FOLDER}/{name}")

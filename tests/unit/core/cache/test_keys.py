"""Requests have equal keys if and only if a model sees the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.core.cache.keys import SIZE, Keys, common_identity, key_parts, own_identity
from naiad.repository.config import ModelConfig
from naiad.repository.layout import ModelFolder
from naiad.repository.watch import fingerprint
from naiad_backends.api import Parameter, Request, Tensor

IDENTITY = bytes(SIZE)
KEYS = Keys(IDENTITY)


def key(request: Request, keys: Keys = KEYS) -> bytes:
    return keys.of(key_parts(request)[0])


def tensor(name: str, data: bytes, datatype: str = "UINT8", *shape: int) -> Tensor:
    return Tensor.from_wire(name, datatype, shape or (len(data),), data)


def request(*tensors: Tensor, **fields: object) -> Request:
    made = Request("m", inputs={one.name: one for one in tensors})
    return replace(made, **fields)  # type: ignore[arg-type]  # of a test


BASE = request(tensor("a", b"abcd"), tensor("b", b"efgh"))

DIFFERENT = {
    "base": BASE,
    "bytes": request(tensor("a", b"abcd"), tensor("b", b"efgi")),
    "swapped": request(tensor("a", b"efgh"), tensor("b", b"abcd")),
    "shape": request(tensor("a", b"abcd", "UINT8", 2, 2), tensor("b", b"efgh")),
    "datatype": request(tensor("a", b"abcd", "INT8"), tensor("b", b"efgh")),
    "wider": request(tensor("a", b"abcd", "INT32", 1), tensor("b", b"efgh")),
    "split": request(tensor("a", b"abcde"), tensor("b", b"fgh")),
    "names": request(tensor("a", b"abcd"), tensor("c", b"efgh")),
    "one": request(tensor("a", b"abcdefgh")),
    "none": request(),
    "output": replace(BASE, outputs=["x"]),
    "outputs": replace(BASE, outputs=["x", "y"]),
    "order": replace(BASE, outputs=["y", "x"]),
    "true": replace(BASE, parameters={"p": True}),
    "one as integer": replace(BASE, parameters={"p": 1}),
    "one as float": replace(BASE, parameters={"p": 1.0}),
    "one as text": replace(BASE, parameters={"p": "1"}),
    "nan": replace(BASE, parameters={"p": float("nan")}),
    "infinity": replace(BASE, parameters={"p": float("inf")}),
    "two": replace(BASE, parameters={"p": 1, "q": 1}),
    "sequence": replace(BASE, correlation_id=1),
    "sequence by name": replace(BASE, correlation_id="1"),
    "largest sequence": replace(BASE, correlation_id=2**64 - 1),
    "start": replace(BASE, sequence_start=True),
    "end": replace(BASE, sequence_end=True),
}


def test_whatever_a_model_sees_makes_a_difference() -> None:
    keys = {key(one) for one in DIFFERENT.values()}
    assert len(keys) == len(DIFFERENT)
    assert all(len(one) == SIZE for one in keys)
    assert keys.isdisjoint(key(one, Keys(own_identity())) for one in DIFFERENT.values())


@pytest.mark.parametrize(
    "other",
    [
        request(tensor("b", b"efgh"), tensor("a", b"abcd")),
        replace(BASE, id="7"),
        replace(BASE, priority=1, timeout_us=5),
        replace(BASE, classes={"x": 1}),
        replace(BASE, outputs=()),
        replace(BASE, model_version="1"),
    ],
    ids=["order", "id", "queue", "classes", "outputs", "version"],
)
def test_what_no_model_sees_makes_none(other: Request) -> None:
    assert key(other) == key(BASE)


def test_how_a_tensor_came_makes_no_difference() -> None:
    array = np.array([[b"a", b"", b"bcd"]], object)
    made = Tensor.from_numpy("t", array)
    came = Tensor.from_wire("t", "BYTES", (1, 3), bytes(made.wire()))
    assert key(request(made)) == key(request(came))
    column = np.arange(6, dtype=np.float32).reshape(2, 3).T
    strided, plain = (Tensor.from_numpy("t", one) for one in (column, column.copy()))
    assert key(request(strided)) == key(request(plain))


values = st.one_of(st.booleans(), st.integers(), st.floats(), st.text())


@given(st.dictionaries(st.text(), values), st.dictionaries(st.text(), values))
def test_parameters_in_general(one: dict[str, Parameter], other: dict[str, Parameter]) -> None:
    equal = sorted(map(repr, one.items())) == sorted(map(repr, other.items()))
    keys = [key(replace(BASE, parameters=each)) for each in (one, other)]
    assert (keys[0] == keys[1]) is equal


def test_the_size_is_that_of_the_bytes() -> None:
    texts = Tensor.from_numpy("t", np.array([b"abc"] * 10, object))
    numbers = Tensor.from_numpy("u", np.zeros((3, 5), np.float64))
    assert [key_parts(one)[1] for one in (BASE, request(), request(texts, numbers))] == [8, 0, 190]


CONFIG = """backend: "identity"
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""


def model(root: Path) -> Path:
    for version in ("1", "2"):
        (root / "m" / version).mkdir(parents=True)
        (root / "m" / version / "model.bin").write_bytes(b"weights")
    (root / "m" / "config.pbtxt").write_text(CONFIG)
    return root / "m"


def identity(path: Path, version: int = 1) -> bytes:
    folder = ModelFolder.at(path)
    config = ModelConfig.read(folder)
    return common_identity(config, config.spec(version, folder), fingerprint(path))


def test_servers_with_the_same_files_share_an_identity(tmp_path: Path) -> None:
    one, other = model(tmp_path / "one"), model(tmp_path / "other")
    assert identity(one) == identity(one) == identity(other)
    assert identity(one) != identity(one, 2)


@pytest.mark.parametrize("file", ["1/model.bin", "config.pbtxt", "labels.txt"])
def test_another_file_is_another_identity(tmp_path: Path, file: str) -> None:
    one, other = model(tmp_path / "one"), model(tmp_path / "other")
    with (other / file).open("a") as changed:
        changed.write(" # more" if file != "config.pbtxt" else "max_batch_size: 2")
    assert identity(one) != identity(other)
    # The other version has the same files of its own, but not the same around them.
    assert (identity(one, 2) == identity(other, 2)) is (file == "1/model.bin")


def test_files_that_changed_during_the_load_belong_to_nobody(tmp_path: Path) -> None:
    path = model(tmp_path)
    folder = ModelFolder.at(path)
    config = ModelConfig.read(folder)
    before = fingerprint(path)
    (path / "1" / "model.bin").write_bytes(b"other weights")
    spec = config.spec(1, folder)
    assert common_identity(config, spec, before) != common_identity(config, spec, before)
    assert identity(path) == identity(path)

"""The reader of GGUF files: sound ones as another library wrote them, damaged ones as errors."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from naiad_backends.errors import Code, NaiadError
from naiad_backends.llm.checkpoint.gguf import GgufFile, read_gguf
from naiad_backends.llm.checkpoint.weights import TYPES

RNG = np.random.default_rng(0)
U32, U64 = 4, 10


def write(path: Path, fill: Callable[[gguf.GGUFWriter], None]) -> Path:
    """A file by the format's own library."""
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sample(writer: gguf.GGUFWriter) -> None:
    """Some of everything."""
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "héllo")
    writer.add_array("a.strings", ["a", "", "ö"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("half", np.arange(4, dtype=np.float16))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "sound.gguf", sample).read_bytes()


def test_what_another_library_wrote(tmp_path: Path) -> None:
    file = read_gguf(write(tmp_path / "a.gguf", sample))

    assert file.metadata["a.number"] == 7
    assert file.metadata["a.float"] == 0.5
    assert file.metadata["a.flag"] is True
    assert file.metadata["a.text"] == "héllo"
    assert file.metadata["a.strings"] == ["a", "", "ö"]
    assert file.metadata["a.numbers"].tolist() == [1, 2, 3]
    assert file.tensors["one"].shape == (2, 3)
    assert file.tensors["one"].float32().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert file.tensors["half"].float32().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("number", "entry"), TYPES.items(), ids=[e[0] for e in TYPES.values()])
def test_every_type_of_tensor(tmp_path: Path, number: int, entry: tuple[str, int, int]) -> None:
    name, numbers, size = entry
    kind = gguf.GGMLQuantizationType(number)
    assert (name, (numbers, size)) == (kind.name, gguf.GGML_QUANT_SIZES[kind])

    plain = {"F64": np.float64, "F32": np.float32, "F16": np.float16}.get(name)
    if plain:
        packed = RNG.standard_normal((3, 2)).astype(plain)
        expected = packed.astype(np.float32)
    else:
        packed = RNG.integers(0, 60, (3, 2 * size), np.uint8)
        expected = gguf.dequantize(packed, kind)

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("x", packed, raw_dtype=None if plain else kind)

    weight = read_gguf(write(tmp_path / "a.gguf", fill)).tensors["x"]

    assert (weight.type, weight.shape) == (name, expected.shape)
    np.testing.assert_array_equal(weight.float32(), expected)
    np.testing.assert_array_equal(weight.rows(np.array([2, 0])).float32(), expected[[2, 0]])
    np.testing.assert_array_equal(weight.rows(slice(1, 3)).float32(), expected[1:])


def header(tensors: int, keys: int, *body: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(body)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", U32, value)


def tensor(name: str, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


ROOM = bytes(4096)
HUGE = 1 << 62

BROKEN = {
    "empty": (b"", "ends at byte 0"),
    "short": (b"GG", "ends at byte 2"),
    "magic": (b"GGML" + ROOM, "does not begin with 'GGUF'"),
    "version": (header(0, 0, version=1), "has version 1"),
    "big-endian": (header(0, 0, version=3 << 24), "is big-endian"),
    "many keys": (header(0, HUGE, ROOM), f"has {HUGE} metadata keys"),
    "many tensors": (header(HUGE, 0, ROOM), f"has {HUGE} tensors"),
    "long key": (header(0, 1, struct.pack("<Q", HUGE), ROOM), "ends at byte"),
    "key twice": (header(0, 2, number("a", 1), number("a", 1)), "'a' stands twice"),
    "key of no text": (header(0, 1, struct.pack("<Q", 2), b"\xff\xfe", ROOM), "not UTF-8"),
    "type of a value": (header(0, 1, text("a"), struct.pack("<I", 13), ROOM), "type 13"),
    "long array": (header(0, 1, text("a"), struct.pack("<IIQ", 9, U64, HUGE), ROOM), "items of"),
    "many strings": (header(0, 1, text("a"), struct.pack("<IIQ", 9, 8, HUGE), ROOM), "strings of"),
    "array of arrays": (header(0, 1, text("a"), struct.pack("<IIQ", 9, 9, 1), ROOM), "type 9"),
    "string of an array": (
        header(0, 1, text("a"), struct.pack("<IIQQ", 9, 8, 1, HUGE), ROOM),
        "ends in 'a'",
    ),
    "alignment": (header(0, 1, number("general.alignment", 24)), "general.alignment is 24"),
    "no alignment": (header(0, 1, number("general.alignment", 0)), "general.alignment is 0"),
    "tensor twice": (header(2, 0, tensor("a", 1), tensor("a", 1), ROOM), "'a' stands twice"),
    "no dimensions": (header(1, 0, tensor("a"), ROOM), "0 dimensions"),
    "many dimensions": (header(1, 0, tensor("a", 1, 1, 1, 1, 1), ROOM), "5 dimensions"),
    "type of a tensor": (header(1, 0, tensor("a", 1, kind=99), ROOM), "unknown type 99"),
    "no numbers": (header(1, 0, tensor("a", 4, 0), ROOM), r"cannot have shape \[0, 4\]"),
    "part of a block": (header(1, 0, tensor("a", 33, kind=2), ROOM), "Q4_0 cannot have shape"),
    "huge tensor": (header(1, 0, tensor("a", HUGE, HUGE), ROOM), "before the end of the tensor"),
    "behind the end": (header(1, 0, tensor("a", 1, offset=1 << 40), ROOM), "before the end"),
    "not aligned": (header(1, 0, tensor("a", 1, offset=8), ROOM), "not aligned to 32"),
    "overlap": (header(2, 0, tensor("a", 16), tensor("b", 1, offset=32), ROOM), "'b' overlaps"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_file_is_an_error_that_names_it(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)

    with pytest.raises(NaiadError, match=message) as error:
        read_gguf(path)

    assert error.value.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
    assert error.value.field == str(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NaiadError) as error:
        read_gguf(tmp_path / "a.gguf")

    assert error.value.code == Code.NOT_FOUND


def touch(file: GgufFile) -> None:
    """Read all that it describes."""
    for weight in file.tensors.values():
        weight.data.tobytes()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10_000), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255))))
@example(10, [])
def test_any_bytes_are_read_or_refused(
    sound: bytes, tmp_path: Path, length: int, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(sound[:length])
    for place, value in changes:
        if place < len(content):
            content[place] = value
    path = tmp_path / "a.gguf"
    path.write_bytes(content)

    try:
        touch(read_gguf(path))
    except NaiadError as error:
        assert error.field == str(path)

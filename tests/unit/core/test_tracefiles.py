"""Trace files: what a record becomes, and what happens when it cannot be written."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.tensors import SAMPLES, Array

from naiad.core import tracefiles
from naiad.core.tracefiles import Record, TensorRecord, TraceFiles, entries


def record(number: int, text: str = "") -> Record:
    return Record(number, "m", "1", text, [("X", number)])


def texts(datatype: str, array: Array) -> str:
    kept = array.view(np.uint16) if datatype == "BF16" else array
    one = Record(1, "m", "1", "", [], [TensorRecord("ACT", "x", datatype, kept)])
    _, entry = entries(one)
    assert entry["activity"] == "ACT"
    tensor = entry["tensor"]
    assert (tensor["name"], tensor["shape"], tensor["dtype"]) == ("x", "2,3", datatype)
    return str(tensor["data"])


@pytest.mark.parametrize("datatype", SAMPLES)
def test_every_datatype_can_be_read_back(datatype: str) -> None:
    array = SAMPLES[datatype]
    text = texts(datatype, array)
    if datatype == "BYTES":
        assert [t.encode() for t in json.loads(f"[{text}]")] == list(array.ravel())
    elif array.dtype.kind in "biu":
        assert json.loads(f"[{text}]") == array.ravel().tolist()
    else:
        read = np.array([float(part) for part in text.split(",")]).astype(array.dtype)
        np.testing.assert_array_equal(read.astype(float), array.ravel().astype(float))


def test_bytes_that_are_no_text_are_escaped() -> None:
    array = np.array([[b"\xff\x00a", b"b", b"c"], [b"d", b"e", b"f"]], object)
    assert json.loads(f"[{texts('BYTES', array)}]")[0] == "\\xff\x00a"


def test_a_large_tensor_is_whole() -> None:
    array = np.arange(100_000, dtype=np.float32)
    array[50_000] = np.nan
    one = Record(1, "m", "1", "", [], [TensorRecord("ACT", "x", "FP32", array)])
    data = list(entries(one))[1]["tensor"]["data"]
    np.testing.assert_array_equal(np.array(data.split(","), np.float32), array)


def test_an_empty_tensor_has_no_data() -> None:
    one = Record(
        1, "m", "1", "", [], [TensorRecord("ACT", "x", "FP32", np.zeros((0, 2), np.float32))]
    )
    assert list(entries(one))[1]["tensor"] == {
        "name": "x",
        "data": "",
        "shape": "0,2",
        "dtype": "FP32",
    }


def test_timestamps_are_in_order_of_time() -> None:
    one = Record(3, "m", "2", "r", [("B", 2), ("C", 3), ("A", 1), ("D", 3)])
    assert list(entries(one)) == [
        {"id": 3, "model_name": "m", "model_version": 2, "request_id": "r"},
        {
            "id": 3,
            "timestamps": [
                {"name": "A", "ns": 1},
                {"name": "B", "ns": 2},
                {"name": "C", "ns": 3},
                {"name": "D", "ns": 3},
            ],
        },
    ]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_traces_but_not_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = TraceFiles(str(tmp_path / "t"))
    with largest_file(2**20):
        for number, text in ((1, ""), (2, "x" * 2**20), (3, "")):
            files.write([record(number, text)], numbered=False)
            files.close()
            last = json.loads((tmp_path / "t").read_bytes())[-1]["id"]
            assert last == (1 if text else number)
        files.write([record(4, "x" * 2**20)], numbered=True)
        files.write([record(5)], numbered=True)
        files.close()
    assert caplog.text.count("1 traces cannot be written") == 2
    assert json.loads((tmp_path / "t.1").read_bytes())[0]["id"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t", "t.1"]


def test_a_file_that_was_taken_away_is_begun_anew(tmp_path: Path) -> None:
    files = TraceFiles(str(tmp_path / "t"))
    for number in (1, 2):
        files.write([record(number)], numbered=False)
        files.close()
        (tmp_path / "t").rename(tmp_path / f"t{number}")
    assert json.loads((tmp_path / "t2").read_bytes())[0]["id"] == 2


def test_traces_that_come_too_fast_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracefiles, "_MOST_WAITING", 4096)
    files = TraceFiles(str(tmp_path / "t"))
    large = TensorRecord("ACT", "x", "FP32", np.ones(200_000, np.float32))
    for number in range(10):
        files.write([Record(number, "m", "1", "", [], [large])], numbered=True)
    files.close()
    kept = {json.loads(path.read_bytes())[0]["id"] for path in tmp_path.iterdir()}
    assert 0 in kept and len(kept) < 10
    assert caplog.text.count("come faster") <= 10 - len(kept)

"""The table and the JSON of a run."""

import json

import numpy as np
from benchmarks.measure import Cell, Sample, Series
from benchmarks.report import as_json, markdown, size_text
from benchmarks.workloads import Workload

WORK = Workload("identity", 64, (), "OUTPUT0", np.zeros((1, 16), "<f4"), exact=True)
CELL = Cell(WORK, "grpc", 16)


def _series(*pairs: tuple[float, float]) -> Series:
    return Series(
        [Sample(rate, 1.0, 2.0, cpu, 10.0, 100, "h2load", cpu / 2) for rate, cpu in pairs]
    )


RESULTS = [
    (
        CELL,
        {
            "naiad": _series((400, 50), (100, 80), (200, 60)),
            "triton": _series((200, 100), (100, 100), (100, 100)),
            "mlserver": Series(failure="HTTP status 500: a|b\nmore"),
        },
    )
]


def test_medians_and_ratios_within_rounds() -> None:
    table = markdown(RESULTS, {"machine": "two CPUs"}, "triton")
    assert "- machine: two CPUs" in table
    row = "| grpc | 64B | c=16 | naiad | 200 | 1.00 | 2.00 | 60 | 30 | 10 | 0.60 | 2.00 |"
    assert row in table.splitlines()


def test_a_failure_takes_the_place_of_figures() -> None:
    rows = markdown(RESULTS, {}, "triton").splitlines()
    row = next(each for each in rows if "mlserver" in each)
    assert "HTTP status 500: a/b" in row
    assert row.count("|") == 13


def test_no_ratios_without_the_reference() -> None:
    rows = markdown(RESULTS, {}, "mlserver").splitlines()
    assert next(each for each in rows if "naiad" in each).endswith("| 10 |  |  |")


def test_open_loops_are_told_apart() -> None:
    cell = Cell(WORK, "http-binary", 16, "poisson", 0.8)
    rows = markdown([(cell, {"naiad": _series((80, 50))})], {}, "naiad").splitlines()
    assert rows[-1].startswith("| http-binary | 64B | poisson, 0.8 of c=16 | naiad | 80 |")


def test_json_keeps_every_sample() -> None:
    cell = json.loads(as_json(RESULTS, {"machine": "two CPUs"}))["cells"][0]
    assert [s["rate"] for s in cell["servers"]["naiad"]["samples"]] == [400, 100, 200]


def test_sizes() -> None:
    sizes = [64, 2304, 8192, 1 << 20, 16 << 20]
    assert [size_text(size) for size in sizes] == ["64B", "2304B", "8K", "1M", "16M"]

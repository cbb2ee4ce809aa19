"""What is measured of Python models, and what is made of the figures."""

from benchmarks.measure import Sample, Series
from benchmarks.python_models import calls_table, cells
from benchmarks.repositories import PYTHON_MODELS

MIB = 1 << 20


def test_fewer_clients_where_tensors_are_large() -> None:
    found = cells(["identity"], ["grpc"], [64, MIB, 64 * MIB], [1, 16, 64])
    assert [(cell.workload.payload, cell.concurrency) for cell in found] == [
        (64, 1),
        (64, 16),
        (64, 64),
        (MIB, 1),
        (MIB, 16),
        (64 * MIB, 1),
    ]


def test_only_identity_has_all_payloads_and_streams_are_grpc() -> None:
    found = cells(PYTHON_MODELS, ["http-binary", "grpc"], [64, 128], [1])
    seen = [(cell.workload.model, cell.workload.payload, cell.protocol) for cell in found]
    assert len([one for one in seen if one[0] == "identity_4"]) == 4
    assert [one for one in seen if one[0] == "responses"] == [("responses", 64, "grpc")]
    assert {one[1] for one in seen if one[0] in ("add_sub", "calls_1", "calls_10")} == {64}


def test_a_call_is_a_tenth_beside_nine_or_the_only_one() -> None:
    wanted = cells(["identity", "calls_1", "calls_10"], ["grpc"], [64], [1])
    us = {"triton": (100, 300, 1200), "process": (50, 250, 2050)}
    results = [
        (
            cell,
            {
                name: Series([Sample(1, 1, 1, spent[at], 1, 1, "h2load")])
                for name, spent in us.items()
            },
        )
        for at, cell in enumerate(wanted)
    ]
    lines = calls_table(results, "triton").splitlines()
    assert "| grpc | c=1 | triton | 100 (1.00) | 200 (1.00) |" in lines
    assert "| grpc | c=1 | process | 200 (2.00) | 200 (1.00) |" in lines
    assert calls_table(results[1:], "triton") == ""

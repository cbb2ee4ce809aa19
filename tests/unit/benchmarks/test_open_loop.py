"""Open-loop load against a real server."""

import numpy as np
import pytest
from benchmarks.bodies import Request
from benchmarks.errors import BenchmarkError
from benchmarks.http_client import post_bytes
from benchmarks.load import Target
from benchmarks.open_loop import measure, replay

BODY = bytes(1 << 20)  # more than one write


@pytest.mark.parametrize("connections", [1, 3, 64])
def test_each_request_is_answered_after_it_was_due(port: int, connections: int) -> None:
    due = np.linspace(0, 0.1, 20)
    timings = replay(port, post_bytes("/", {}, BODY), due, connections, len(BODY), timeout=30)
    assert len(timings.latencies) == 20
    assert min(timings.latencies) > 0
    assert timings.seconds >= 0.1


def test_what_a_request_waits_for_a_connection_counts(port: int) -> None:
    """All are due at once, and one goes after the other."""
    due = np.zeros(10)
    timings = replay(port, post_bytes("/", {}, b"abc"), due, 1, 3, timeout=30)
    assert timings.latencies == sorted(timings.latencies)
    assert timings.latencies[-1] <= timings.seconds < sum(timings.latencies)


@pytest.mark.parametrize(
    ("path", "length", "text"), [("/error", 3, "status 400"), ("/", 4, "with 3 bytes")]
)
def test_other_answers_are_refused(port: int, path: str, length: int, text: str) -> None:
    with pytest.raises(BenchmarkError, match=text):
        replay(port, post_bytes(path, {}, b"abc"), np.zeros(4), 2, length, timeout=30)


def test_a_load_counts_all_that_was_due(port: int) -> None:
    target = Target("http-binary", port, 0, Request("/", {}, b"abc"), 3)
    load = measure(target, np.linspace(0, 0.01, 30))
    assert load.requests == 30
    assert 0 < load.p50_ms <= load.p99_ms
    assert 0 < load.mean_ms <= load.p99_ms


def test_grpc_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="HTTP only"):
        measure(Target("grpc", 0, 0, Request("/", {}, b""), 0), np.zeros(1))

"""Reading what wrk and h2load print, from captured text."""

from pathlib import Path

import pytest
from benchmarks.bodies import Request
from benchmarks.errors import BenchmarkError
from benchmarks.load import parse_h2load, parse_wrk, wrk_script

WRK = """Running 2s test @ http://127.0.0.1:9401/v2/models/identity/infer
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   342.01us  151.88us   5.71ms   92.76%
    Req/Sec    41.04k     3.10k   46.88k    70.00%
  81678 requests in 2.01s, 26.48MB read
Requests/sec:  40706.98
Transfer/sec:     13.20MB
naiad-result {{"requests": {requests}, "us": 2000000, \
"mean_us": 342, "p50_us": 308, "p99_us": 774, "status": {status}, "socket": {socket}}}
"""

H2LOAD = """starting benchmark...
spawning thread #0: 2 total client(s). 4 total requests
Application protocol: h2c
progress: 25% done
progress: 100% done

finished in 2.64ms, 1512.86 req/s, 502.32KB/s
requests: 4 total, 4 started, 4 done, {succeeded} succeeded, 0 failed, 0 errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.33KB (1360) total, 68B (68) headers (space savings 0.00%), 1.17KB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:      113us       682us       330us       254us    75.00%
"""

H2LOAD_LOG = """1795371148297450\t200\t682
1795371148298165\t200\t113
1795371148297946\t200\t343
1795371148298293\t200\t180
"""


def test_wrk_figures() -> None:
    load = parse_wrk(WRK.format(requests=81678, status=0, socket=0), client_cpu_s=0.9)
    assert (load.requests, load.seconds, load.rate) == (81678, 2.0, 40839.0)
    assert (load.mean_ms, load.p50_ms, load.p99_ms) == (0.342, 0.308, 0.774)
    assert load.client_cpu_s == 0.9


@pytest.mark.parametrize(
    ("requests", "status", "socket"), [(10, 1, 0), (10, 0, 2), (0, 0, 0)], ids=str
)
def test_wrk_failures_are_no_figures(requests: int, status: int, socket: int) -> None:
    with pytest.raises(BenchmarkError, match="failed requests"):
        parse_wrk(WRK.format(requests=requests, status=status, socket=socket), 0.0)


def test_wrk_without_a_result() -> None:
    with pytest.raises(BenchmarkError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n", 0.0)


def test_wrk_script_sends_headers_and_body() -> None:
    request = Request("/v2", {"Inference-Header-Content-Length": "12"}, b"")
    script = wrk_script(request, Path("folder/body"))
    assert 'wrk.headers["Inference-Header-Content-Length"] = "12"' in script
    assert 'io.open("folder/body", "rb")' in script


def test_h2load_figures() -> None:
    text = H2LOAD.format(succeeded=4, data=1200)
    load = parse_h2load(text, H2LOAD_LOG, count=4, answer_bytes=300, client_cpu_s=0.1)
    assert load.requests == 4
    assert load.seconds == pytest.approx(1023e-6)  # from the first start to the last end
    assert load.mean_ms == pytest.approx(0.3295)
    assert load.p50_ms == pytest.approx(0.2615)
    assert load.p99_ms == pytest.approx(0.682, rel=0.02)


@pytest.mark.parametrize(
    ("succeeded", "data", "text"),
    [(3, 1200, "only 3 of 4"), (4, 900, "gRPC error")],
    ids=["lost", "error in trailers"],
)
def test_h2load_failures_are_no_figures(succeeded: int, data: int, text: str) -> None:
    printed = H2LOAD.format(succeeded=succeeded, data=data)
    with pytest.raises(BenchmarkError, match=text):
        parse_h2load(printed, H2LOAD_LOG, count=4, answer_bytes=300, client_cpu_s=0.1)

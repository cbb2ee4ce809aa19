"""`python -m benchmarks.sequences`: many streams of sound at a time, their pieces interleaved.

silero-vad with states that the server keeps, over HTTP with binary tensors. One piece of each
stream, then the next of each; every answer is compared with onnxruntime's, stepped by hand.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort

from benchmarks import bodies, http_client, measure, peers, report, repositories, servers
from benchmarks.errors import BenchmarkError
from benchmarks.facts import facts
from benchmarks.load import TIME_LIMIT, Load
from benchmarks.servers import Server
from benchmarks.weights import fetched, progress
from benchmarks.workloads import Array, Tensor, Workload
from naiad_backends.errors import NaiadError

PIECE = 512
"""Samples of a request: 32 ms."""


@dataclass(frozen=True)
class Streams:
    """All requests of a round in the order in which they are sent, and the right answers."""

    requests: Sequence[bytes]
    expected: Array
    """[steps, streams]"""


def make(onnx: Path, number: int, steps: int) -> Streams:
    """`number` streams of `steps` pieces, each stream with a sound of its own."""
    random = np.random.default_rng(4)
    loudness = np.geomspace(0.001, 0.5, number)[None, :, None]
    sound = (random.normal(0, loudness, (steps, number, PIECE))).astype("<f4")
    session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    state, context = np.zeros((number, 2, 128), "f4"), np.zeros((number, 64), "f4")
    expected = []
    for pieces in sound:
        feed = {"audio": pieces, "state_in": state, "context": context}
        speech, state, context = session.run(["speech", "state_out", "context_out"], feed)
        expected.append(speech[:, 0])
    requests = [
        _request(piece, stream, step == 0, step == steps - 1)
        for step, pieces in enumerate(sound)
        for stream, piece in enumerate(pieces)
    ]
    return Streams(requests, np.stack(expected))


def _request(piece: Array, stream: int, first: bool, last: bool) -> bytes:
    parameters = {"sequence_id": stream + 1, "sequence_start": first, "sequence_end": last}
    inputs = (Tensor("audio", "FP32", piece[None]),)
    request = bodies.encode("http-binary", "streams", inputs, "speech", parameters)
    return http_client.post_bytes(request.path, request.headers, request.body)


def drive(port: int, streams: Streams, connections: int) -> Load:
    """Sends all requests in their order over `connections`, of which there are fewer than streams:
    so the answer to a piece is there long before the next piece of its stream is sent.

    Raises BenchmarkError on a wrong answer, or when it takes too long.
    """
    cpu = time.process_time()
    timings, answers = http_client.exchange_all(port, streams.requests, connections, TIME_LIMIT)
    cpu = time.process_time() - cpu
    check(answers, streams.expected)
    return Load.of(timings, cpu, "own")


def check(answers: Sequence[http_client.Answer], expected: Array) -> None:
    """Raises BenchmarkError unless the answers, step by step, are those of `expected`."""
    found = []
    for answer in answers:
        if answer.status != 200:
            raise BenchmarkError(f"HTTP status {answer.status}: {answer.body[:300]!r}")
        found.append(bodies.decode("http-binary", "speech", answer.headers, answer.body)[0, 0])
    if not np.allclose(found, expected.reshape(-1), rtol=1e-3, atol=1e-4):
        raise BenchmarkError("an answer differs from onnxruntime's own")


@click.command()
@click.option("--streams", "number", default=1000, show_default=True)
@click.option("--steps", default=10, show_default=True, help="Pieces of each stream.")
@click.option("--concurrency", default=64, show_default=True, help="Requests at a time.")
@click.option("--rounds", default=3, show_default=True, help="Times that the servers take turns.")
@click.option("--triton/--no-triton", default=True, help="Beside Naiad, in the same run.")
@click.option("--pin", is_flag=True, help="Servers on the first CPU, the client on the second.")
@click.option(
    "--peers-home",
    type=click.Path(path_type=Path),
    default=Path.home() / ".cache" / "naiad-peers",
    help="Where the peers' environments are kept.",
)
def main(
    number: int,
    steps: int,
    concurrency: int,
    rounds: int,
    triton: bool,
    pin: bool,
    peers_home: Path,
) -> None:
    """Measures interleaved sequences in Naiad and Triton, and prints a markdown report."""
    if not 0 < concurrency < number:
        raise click.ClickException("give more streams than requests at a time")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sequences-")))
        try:
            onnx = fetched(["streams"], folder / "weights")["streams"]
            streams = make(onnx, number, steps)
            started = []
            for name in ["naiad", "triton"] if triton else ["naiad"]:
                repositories.write_streams(folder / name, name, onnx)
                ports = servers.free_ports()
                command = (
                    servers.naiad(folder / name, ports)
                    if name == "naiad"
                    else peers.triton(peers_home, folder / name, ports)
                )
                log, cores = folder / f"{name}.log", "0" if pin else ""
                started.append(
                    stack.enter_context(servers.running(name, command, ports, log, cores))
                )
            if pin:
                os.sched_setaffinity(0, {1})
            series = _measured(started, streams, concurrency, rounds)
            told = facts("benchmarks.sequences") | {
                "servers": ", ".join(f"{each.name} {each.version()}" for each in started),
                "load": f"{number} streams, {steps} pieces of each, every answer compared",
            }
        except (BenchmarkError, NaiadError) as error:
            raise click.ClickException(str(error)) from error
    work = Workload("streams", PIECE * 4, (), "speech", streams.expected, exact=False)
    results = [(measure.Cell(work, "http-binary", concurrency), series)]
    click.echo(report.markdown(results, told, started[-1].name))


def _measured(
    started: Sequence[Server], streams: Streams, concurrency: int, rounds: int
) -> dict[str, measure.Series]:
    series = {server.name: measure.Series() for server in started}
    for server in started:
        drive(server.ports.http, streams, concurrency)  # warm
    for turn in range(rounds):
        for server in started if turn % 2 == 0 else started[::-1]:
            before = server.spent()
            seen = drive(server.ports.http, streams, concurrency)
            used = server.spent() - before
            sample = measure.as_sample(seen, used)
            series[server.name].samples.append(sample)
            progress(f"{server.name}: {sample.rate:.0f} req/s, {sample.server_us:.0f} us")
    return series


if __name__ == "__main__":
    main()

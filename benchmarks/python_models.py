"""`python -m benchmarks.python_models`: the same `model.py` files in Triton and in Naiad.

Naiad runs them twice, in processes of their own as Triton does, and on threads of the server.
Beside single requests: calls of another model in the middle of `execute`, ensembles of one step and
of three, and many responses to one request.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import click

from benchmarks import (
    bodies,
    load,
    measure,
    options,
    peers,
    report,
    repositories,
    servers,
    workloads,
)
from benchmarks.errors import BenchmarkError
from benchmarks.facts import facts
from benchmarks.measure import Cell, Series
from benchmarks.repositories import PYTHON_MODELS, RESPONSES
from benchmarks.servers import Server
from benchmarks.weights import progress
from naiad_backends.errors import NaiadError

SERVERS = ("triton", "process", "thread")
"""The peer, and Naiad with each kind of execution."""
PROTOCOLS = ("http-json", "http-binary", "grpc")

_IN_FLIGHT = 32 << 20
"""Bytes of the clients' tensors at a time, beyond which a cell is left out."""


def cells(
    models: Iterable[str],
    protocols: Sequence[str],
    payloads: Sequence[int],
    concurrency: Sequence[int],
) -> list[Cell]:
    """What is measured: identity with all payloads, the others with the smallest; fewer clients
    where tensors are large; `responses` over gRPC alone, which has streams."""
    found = []
    for model in models:
        sizes = payloads if model.startswith("identity") else [min(payloads)]
        for size in sizes:
            work = replace(_workload(model, size), model=model)
            found += [
                Cell(work, protocol, clients)
                for protocol in (["grpc"] if model == "responses" else protocols)
                for clients in concurrency
                if clients == 1 or clients * size <= _IN_FLIGHT
            ]
    return found


def _workload(model: str, size: int) -> workloads.Workload:
    return workloads.add_sub(size) if model == "add_sub" else workloads.make("identity", size, {})


def opened(cell: Cell, server: Server) -> AbstractContextManager[load.Target]:
    """The target of a cell, behind an answer of it that was compared."""
    return (_streamed if cell.workload.model == "responses" else measure.checked)(cell, server)


@contextmanager
def _streamed(cell: Cell, server: Server) -> Iterator[load.Target]:
    """One request counts as one answer, that with all its responses."""
    work, ports = cell.workload, server.ports
    request = bodies.encode("grpc", work.model, work.inputs, work.output)
    request = replace(request, path=bodies.GRPC_STREAM_PATH)
    messages = load.stream_once(ports.grpc, request)
    if len(messages) != RESPONSES:
        raise BenchmarkError(f"{len(messages)} responses, not {RESPONSES}")
    for message in messages:
        work.check(bodies.decode_part(work.output, message))
    size = sum(len(message) + bodies.GRPC_PREFIX for message in messages) - bodies.GRPC_PREFIX
    yield load.Target("grpc", ports.http, ports.grpc, request, size)


def calls_table(results: report.Results, reference: str) -> str:
    """What one call of another model costs: a tenth call beside nine others, and the only one.

    From medians over rounds. The first is the difference of ten calls and one, by nine; the second
    that of a request with one call and a request to `identity` itself. Empty without these cells.
    """
    found: dict[tuple[str, int, int], dict[str, Mapping[str, Series]]] = {}
    for cell, series in results:
        work = cell.workload
        where = (cell.protocol, cell.concurrency, work.payload)
        found.setdefault(where, {})[work.model] = series
    lines = []
    for (protocol, clients, _), models in found.items():
        if not models.keys() >= {"identity", "calls_1", "calls_10"}:
            continue
        none, one, ten = (models[name] for name in ("identity", "calls_1", "calls_10"))
        further = {name: (_cpu(ten[name]) - _cpu(one[name])) / 9 for name in ten}
        first = {name: _cpu(one[name]) - _cpu(none[name]) for name in ten}
        for name in ten:
            figures = [
                f"{us[name]:.0f}{_ratio(us[name], us.get(reference))}" for us in (further, first)
            ]
            lines.append(report.row([protocol, f"c={clients}", name, *figures]))
    if not lines:
        return ""
    head = ["protocol", "load", "server", "CPU µs/further call", "CPU µs/only call"]
    title = f"\n## Calls of another model (in brackets: ratio to {reference})\n"
    return "\n".join([title, report.row(head), report.row(["---"] * len(head)), *lines, ""])


def _ratio(us: float, other: float | None) -> str:
    return f" ({us / other:.2f})" if other else ""


def _cpu(series: Series) -> float:
    return median(each.server_us for each in series.samples) if series.samples else float("nan")


@click.command()
@click.option(
    "--models",
    type=options.CommaList(PYTHON_MODELS),
    default=",".join(PYTHON_MODELS),
    show_default=True,
)
@click.option(
    "--protocols", type=options.CommaList(PROTOCOLS), default=",".join(PROTOCOLS), show_default=True
)
@click.option("--payloads", type=options.CommaList(), default="64,1M,16M", show_default=True)
@click.option("--concurrency", type=options.CommaList(), default="1,16,64", show_default=True)
@click.option(
    "--servers",
    "names",
    type=options.CommaList(SERVERS),
    default=",".join(SERVERS),
    show_default=True,
    help="Triton, and Naiad with each kind of execution.",
)
@click.option("--rounds", default=3, show_default=True, help="Times that the servers take turns.")
@click.option("--duration", default=1.0, show_default=True, help="Seconds per measurement.")
@click.option("--pin", is_flag=True, help="Servers on the first CPU, the client on the second.")
@click.option(
    "--peers-home",
    type=click.Path(path_type=Path),
    default=Path.home() / ".cache" / "naiad-peers",
    help="Where the peers' environments are kept.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Every sample.")
@click.option("--markdown", "markdown_file", type=click.Path(path_type=Path), help="The report.")
def main(
    models: list[str],
    protocols: list[str],
    payloads: list[str],
    concurrency: list[str],
    names: list[str],
    rounds: int,
    duration: float,
    pin: bool,
    peers_home: Path,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measures Python models in Triton and Naiad, in turns, and prints a markdown report."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="python-models-")))
        try:
            sizes = [options.size(text) for text in payloads]
            wanted = cells(models, protocols, sizes, [options.clients(n) for n in concurrency])
            cores = "0" if pin else ""
            started = [
                stack.enter_context(_start(name, folder, peers_home, cores)) for name in names
            ]
        except (BenchmarkError, NaiadError) as error:
            raise click.ClickException(str(error)) from error
        if pin:
            os.sched_setaffinity(0, {1})
        told = facts("benchmarks.python_models") | {
            "servers": ", ".join(f"{each.name} {each.version()}" for each in started),
            "rounds": f"{rounds} of {duration:g} s, servers in turns, client on the same machine",
        }
        results = [(cell, _measured(cell, started, rounds, duration)) for cell in wanted]
    reference = names[0]
    text = report.markdown(results, told, reference) + calls_table(results, reference)
    click.echo(text)
    if markdown_file:
        markdown_file.write_text(text)
    if json_file:
        json_file.write_text(report.as_json(results, told))


def _start(name: str, folder: Path, peers_home: Path, cores: str) -> AbstractContextManager[Server]:
    """Writes the server's repository into a folder of its own and starts it there."""
    repository, ports = folder / name, servers.free_ports()
    if name == "triton":
        repositories.write_python(repository)
        command = peers.triton(peers_home, repository, ports)
    else:
        repositories.write_python(repository, execution=name)
        command = servers.naiad(repository, ports)
    return servers.running(name, command, ports, folder / f"{name}.log", cores)


def _measured(
    cell: Cell, started: Sequence[Server], rounds: int, duration: float
) -> dict[str, Series]:
    work = cell.workload
    title = f"{work.model} {cell.protocol} {report.size_text(work.payload)} {cell.load}"

    def say(text: str) -> None:
        progress(f"{title} {text}")

    return measure.run_cell(cell, started, rounds, duration, say, opened)


if __name__ == "__main__":
    main()

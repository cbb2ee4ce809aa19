"""`python -m benchmarks`: options, the servers of the run, and where the report goes."""

import os
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import click

from benchmarks import arrivals, measure, options, peers, report, repositories, servers, workloads
from benchmarks.bodies import PROTOCOLS
from benchmarks.errors import BenchmarkError
from benchmarks.facts import facts
from benchmarks.servers import Server
from benchmarks.weights import fetched, progress
from naiad_backends.errors import NaiadError


@click.command()
@click.option(
    "--models", type=options.CommaList(workloads.MODELS), default="identity", show_default=True
)
@click.option(
    "--protocols", type=options.CommaList(PROTOCOLS), default=",".join(PROTOCOLS), show_default=True
)
@click.option("--concurrency", type=options.CommaList(), default="1,4,16,64", show_default=True)
@click.option("--load", "loads", type=options.CommaList(arrivals.PATTERNS), default=arrivals.CLOSED)
@click.option(
    "--share",
    default=0.8,
    show_default=True,
    help="Of the closed loop's rate, for the other loads.",
)
@click.option(
    "--payloads",
    type=options.CommaList(),
    default="64,1M,16M",
    show_default=True,
    help="Sizes of identity's tensor in bytes; K and M are powers of 1024.",
)
@click.option(
    "--peers", "peer_names", type=options.CommaList(peers.NAMES), default="triton,mlserver"
)
@click.option("--naiad/--no-naiad", "with_naiad", default=True, help="Measure Naiad itself.")
@click.option("--rounds", default=3, show_default=True, help="Times that the servers take turns.")
@click.option("--duration", default=3.0, show_default=True, help="Seconds per measurement.")
@click.option("--batching", is_flag=True, help="Dynamic batching in Naiad and Triton.")
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
    concurrency: list[str],
    loads: list[str],
    share: float,
    payloads: list[str],
    peer_names: list[str],
    with_naiad: bool,
    rounds: int,
    duration: float,
    batching: bool,
    pin: bool,
    peers_home: Path,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measures Naiad and its peers under equal load, in turns, and prints a markdown report."""
    names = ["naiad"] * with_naiad + peer_names
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
            onnx_files = fetched(models, folder / "weights")
            works = _workloads(models, payloads, onnx_files)
            cells = [
                measure.Cell(work, protocol, options.clients(number), pattern, share)
                for work in works
                for protocol in protocols
                for number in concurrency
                for pattern in loads
            ]
            started = [
                stack.enter_context(
                    _start(
                        name, folder, models, onnx_files, batching, peers_home, "0" if pin else ""
                    )
                )
                for name in names
            ]
        except (BenchmarkError, NaiadError) as error:
            raise click.ClickException(str(error)) from error
        if pin:
            os.sched_setaffinity(0, {1})
        told = facts("benchmarks") | _facts(started, rounds, duration)
        results = [_measured(cell, started, rounds, duration) for cell in cells]
    reference = "triton" if "triton" in names else names[0]
    text = report.markdown(results, told, reference)
    click.echo(text)
    if markdown_file:
        markdown_file.write_text(text)
    if json_file:
        json_file.write_text(report.as_json(results, told))


def _workloads(
    models: list[str], payloads: list[str], onnx_files: dict[str, Path]
) -> list[workloads.Workload]:
    sizes = {"identity": [options.size(text) for text in payloads]}
    return [
        workloads.make(model, size, onnx_files)
        for model in models
        for size in sizes.get(model, [0])
    ]


def _start(
    name: str,
    folder: Path,
    models: list[str],
    onnx_files: dict[str, Path],
    batching: bool,
    peers_home: Path,
    cores: str,
) -> AbstractContextManager[Server]:
    """Writes the server's repository into a folder of its own and starts it there."""
    repository = folder / name
    ports = servers.free_ports()
    if name == "mlserver":
        repositories.write_mlserver(repository, models, onnx_files)
        command = peers.mlserver(peers_home, repository, ports)
    elif name == "triton":
        repositories.write_triton(repository, models, onnx_files, batching)
        command = peers.triton(peers_home, repository, ports)
    else:
        repositories.write_naiad(repository, models, onnx_files, batching)
        command = servers.naiad(repository, ports)
    return servers.running(name, command, ports, folder / f"{name}.log", cores)


def _measured(
    cell: measure.Cell, started: list[Server], rounds: int, duration: float
) -> tuple[measure.Cell, dict[str, measure.Series]]:
    where = f"{cell.workload.model} {cell.protocol} {report.size_text(cell.workload.payload)}"
    title = f"{where} {cell.load}"

    def say(text: str) -> None:
        progress(f"{title} {text}")

    return cell, measure.run_cell(cell, started, rounds, duration, say)


def _facts(started: list[Server], rounds: int, duration: float) -> dict[str, str]:
    return {
        "servers": ", ".join(f"{each.name} {each.version()}" for each in started),
        "rounds": f"{rounds} of {duration:g} s, servers in turns, client on the same machine",
    }


if __name__ == "__main__":
    main()

"""`python -m benchmarks.delays`: is the delay that Naiad chooses as good as the best set by hand?

One server has the same model under several names, each with a queue delay of its own. They take
turns under each pattern of load; in an open loop with equal times for all.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import click

from benchmarks import arrivals, load, open_loop, repositories, servers, workloads
from benchmarks.errors import BenchmarkError
from benchmarks.facts import facts
from benchmarks.load import Load, Target
from benchmarks.measure import Cell, checked
from benchmarks.report import row
from benchmarks.weights import fetched, progress
from naiad_backends.errors import NaiadError

HAND_SET = ("0", "100", "500", "1000", "5000")
"""Microseconds."""
AUTO = "auto"

Figures = Mapping[str, Mapping[str, Sequence[Load]]]
"""What each delay gave under each pattern, round by round: figures[pattern][delay]."""


@click.command()
@click.option("--model", type=click.Choice(["magika", "minilm", "silero"]), default="silero")
@click.option("--concurrency", default=16, show_default=True, help="Clients of the closed loop.")
@click.option("--share", default=0.8, show_default=True, help="Of its rate, for open loops.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--duration", default=2.0, show_default=True, help="Seconds per measurement.")
@click.option("--pin", is_flag=True, help="The server on the first CPU, the client on the second.")
def main(
    model: str, concurrency: int, share: float, rounds: int, duration: float, pin: bool
) -> None:
    """Compares queue delays of Naiad under three patterns of load; prints a table for each."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="delays-")))
        try:
            onnx_files = fetched([model], folder / "weights")
            work = workloads.make(model, 0, onnx_files)
            delays = (*HAND_SET, AUTO)
            names = repositories.write_delays(folder / "naiad", model, onnx_files[model], delays)
            ports = servers.free_ports()
            command = servers.naiad(folder / "naiad", ports)
            log = folder / "naiad.log"
            server = stack.enter_context(
                servers.running("naiad", command, ports, log, "0" if pin else "")
            )
            if pin:
                os.sched_setaffinity(0, {1})
            targets = {
                delay: stack.enter_context(
                    checked(Cell(replace(work, model=name), "http-binary", concurrency), server)
                )
                for delay, name in zip(delays, names, strict=True)
            }
            figures = _measured(targets, concurrency, share, rounds, duration)
        except (BenchmarkError, NaiadError) as error:
            raise click.ClickException(str(error)) from error
    told = facts("benchmarks.delays")
    told["load"] = f"{concurrency} clients in a closed loop, or {share:g} of its rate"
    click.echo("\n".join(f"- {name}: {value}" for name, value in told.items()))
    click.echo(tables(figures))


def _measured(
    targets: Mapping[str, Target], concurrency: int, share: float, rounds: int, duration: float
) -> Figures:
    figures: dict[str, dict[str, list[Load]]] = {
        pattern: {delay: [] for delay in targets} for pattern in arrivals.PATTERNS
    }
    rates = {delay: load.warm_up(target, concurrency) for delay, target in targets.items()}
    for turn in range(rounds):
        # Every other round backwards, so that none always follows the same one.
        order = list(targets.items())[:: 1 if turn % 2 == 0 else -1]
        capacity = 0.0
        for pattern in arrivals.PATTERNS:
            due = arrivals.times(pattern, capacity * share, duration, turn) if capacity else None
            for delay, target in order:
                if due is None:
                    seen = load.measure(target, concurrency, duration, rates[delay])
                else:
                    seen = open_loop.measure(target, due)
                figures[pattern][delay].append(seen)
                progress(f"{pattern} {delay}: {seen.rate:.0f} req/s, {seen.mean_ms:.2f} ms")
            capacity = capacity or figures[pattern]["0"][-1].rate
    return figures


def tables(figures: Figures) -> str:
    """A table for each pattern: medians over rounds, and the automatic delay over the best other.

    Which is the best is chosen by the medians, for each column by itself; the ratio is the median
    of the ratios within each round.
    """
    lines = []
    for pattern, delays in figures.items():
        lines += ["", f"## {pattern}", "", row(["delay µs", *_COLUMNS])]
        lines += [row(["---"] * (len(_COLUMNS) + 1))]
        for delay, loads in delays.items():
            lines.append(
                row([delay, *(f"{_median(loads, of):.2f}" for of, _ in _COLUMNS.values())])
            )
        ratios = [f"{_over_best(delays, *how):.2f}" for how in _COLUMNS.values()]
        lines.append(row(["auto / best other", *ratios]))
    return "\n".join(lines)


def _over_best(
    delays: Mapping[str, Sequence[Load]], of: Callable[[Load], float], best: Callable[..., str]
) -> float:
    others = [delay for delay in delays if delay != AUTO]
    winner = delays[best(others, key=lambda delay: _median(delays[delay], of))]
    return median(of(mine) / of(its) for mine, its in zip(delays[AUTO], winner, strict=True))


def _median(loads: Sequence[Load], of: Callable[[Load], float]) -> float:
    return median(of(each) for each in loads)


_COLUMNS: dict[str, tuple[Callable[[Load], float], Callable[..., str]]] = {
    "req/s": (lambda seen: seen.rate, max),
    "mean ms": (lambda seen: seen.mean_ms, min),
    "p99 ms": (lambda seen: seen.p99_ms, min),
}
"""What is shown of a load, and which of two is the better one."""


if __name__ == "__main__":
    main()

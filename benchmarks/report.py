"""Figures as a markdown table and as JSON: medians over rounds, and ratios to one server.

Pure: takes samples, returns text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median

from benchmarks.measure import Cell, Sample, Series

Results = Sequence[tuple[Cell, Mapping[str, Series]]]

_COLUMNS = (
    "protocol",
    "payload",
    "load",
    "server",
    "req/s",
    "p50 ms",
    "p99 ms",
    "CPU µs/request",
    "first process's",
    "client's",
    "CPU ratio",
    "req/s ratio",
)


def markdown(results: Results, facts: Mapping[str, str], reference: str) -> str:
    """Facts on top, then one table per model.

    Ratios are to `reference`: the median of the ratios within each round, since the machine's
    speed may drift from round to round. They need not equal the ratio of the medians shown.
    """
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "- medians over rounds; CPU is user and system time of all processes of the server,"
        " the first process being the one that was started;"
        f" ratios to {reference}, median of the rounds",
    ]
    for model in dict.fromkeys(cell.workload.model for cell, _ in results):
        lines += ["", f"## {model}", "", row(_COLUMNS), row(["---"] * len(_COLUMNS))]
        for cell, series in results:
            if cell.workload.model == model:
                lines += [_server_row(cell, name, series, reference) for name in series]
    return "\n".join(lines) + "\n"


def as_json(results: Results, facts: Mapping[str, str]) -> str:
    """Every sample of every round."""
    cells = [
        {
            "model": cell.workload.model,
            "protocol": cell.protocol,
            "payload": cell.workload.payload,
            "concurrency": cell.concurrency,
            "arrivals": cell.arrivals,
            "share": cell.share,
            "servers": {name: asdict(one) for name, one in series.items()},
        }
        for cell, series in results
    ]
    return json.dumps({"facts": facts, "cells": cells}, indent=1)


def size_text(size: int) -> str:
    """A size in bytes with B, K or M (powers of 1024) where it is a whole number of them."""
    for unit, text in ((1 << 20, "M"), (1 << 10, "K")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{text}"
    return f"{size}B"


def _server_row(cell: Cell, name: str, series: Mapping[str, Series], reference: str) -> str:
    head = [cell.protocol, size_text(cell.workload.payload), cell.load, name]
    mine = series[name]
    if mine.failure or not mine.samples:
        reason = (mine.failure or "not measured").splitlines()[0].replace("|", "/")
        return row([*head, reason, *[""] * (len(_COLUMNS) - len(head) - 1)])
    middle = [
        f"{_median(mine, lambda s: s.rate):.0f}",
        f"{_median(mine, lambda s: s.p50_ms):.2f}",
        f"{_median(mine, lambda s: s.p99_ms):.2f}",
        f"{_median(mine, lambda s: s.server_us):.0f}",
        f"{_median(mine, lambda s: s.first_us):.0f}",
        f"{_median(mine, lambda s: s.client_us):.0f}",
    ]
    return row([*head, *middle, *_ratios(mine, series.get(reference))])


def _median(series: Series, value: Callable[[Sample], float]) -> float:
    return median(value(sample) for sample in series.samples)


def _ratios(mine: Series, other: Series | None) -> list[str]:
    if other is None or other.failure:
        return ["", ""]
    pairs = list(zip(mine.samples, other.samples, strict=True))
    cpu = median(a.server_us / b.server_us for a, b in pairs)
    rate = median(a.rate / b.rate for a, b in pairs)
    return [f"{cpu:.2f}", f"{rate:.2f}"]


def row(cells: Sequence[str]) -> str:
    """A line of a markdown table."""
    return f"| {' | '.join(cells)} |"

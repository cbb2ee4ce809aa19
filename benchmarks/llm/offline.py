"""Tokens per second of an engine without a server: prefill, and decode at several batch sizes.

An engine is asked twice, for one token and for many: the difference is what decoding takes, for all
engines alike, however they mix the two phases.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

from benchmarks.errors import BenchmarkError


@dataclass(frozen=True)
class Case:
    """batch: prompts at a time.  prompt, output: tokens of each.  decode: what is asked for is the
    rate of new tokens after the first, else that of the tokens of the prompts."""

    batch: int
    prompt: int
    output: int
    decode: bool = True

    @property
    def name(self) -> str:
        """For people to read."""
        if self.decode:
            return f"decode, batch {self.batch}, context {self.prompt}"
        return f"prefill {self.batch} x {self.prompt}"


class Engine(AbstractContextManager["Engine"]):
    """A driver's process, ready to be asked."""

    def __init__(
        self, name: str, command: Sequence[str], threads: int, variables: Mapping[str, str]
    ) -> None:
        """variables: of its environment.  Raises BenchmarkError if it does not come up."""
        self.name = name
        pipe = subprocess.PIPE
        env = {"OMP_NUM_THREADS": str(threads), **variables}
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **env}
        )
        self._line("ready")

    def seconds(self, case: Case, output: int) -> float:
        """For prompts of the case with answers of `output` tokens."""
        asked = {"batch": case.batch, "prompt": case.prompt, "output": output}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._line("{"))["seconds"])

    def rate(self, case: Case) -> float:
        """Tokens per second."""
        if not case.decode:
            return case.batch * case.prompt / self.seconds(case, 1)
        first, whole = self.seconds(case, 1), self.seconds(case, case.output)
        return case.batch * (case.output - 1) / max(whole - first, 1e-9)

    def _line(self, start: str) -> str:
        """The next line that is the driver's; engines print others between them."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        raise BenchmarkError(f"{self.name} ended with code {self._process.wait()}")

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def measure(
    engines: Sequence[Engine], cases: Sequence[Case], rounds: int
) -> dict[Case, dict[str, list[float]]]:
    """Rates by case and engine: engines take turns, every second round backwards."""
    found: dict[Case, dict[str, list[float]]] = {
        case: {engine.name: [] for engine in engines} for case in cases
    }
    for engine in engines:
        engine.seconds(cases[0], 2)
    for number in range(rounds):
        for case in cases:
            for engine in engines if number % 2 == 0 else reversed(engines):
                found[case][engine.name].append(engine.rate(case))
    return found


def table(found: Mapping[Case, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: the median rate of each engine, and the best peer's ratio to the first engine."""
    names = list(next(iter(found.values())))
    rows = [["tokens/s", *names, f"{names[0]} / best peer"], ["---"] * (len(names) + 2)]
    for case, rates in found.items():
        middle = {name: median(values) for name, values in rates.items()}
        peers = [name for name in names if not name.startswith("naiad")]
        ratio = "-"
        if peers:
            best = max(peers, key=lambda name: middle[name])
            ours = zip(rates[names[0]], rates[best], strict=True)
            ratio = f"{median(a / b for a, b in ours):.2f} ({best})"
        rows.append([case.name, *(f"{middle[name]:,.0f}" for name in names), ratio])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)

"""`python -m benchmarks.channel`: what the way to a Python model's process and back costs.

In this process, without front ends and schedulers: callers that hand the instance one batch each,
and the next one when it is done. The worker is a real one; its CPU time stands beside this side's.
With --profile, both sides are watched by cProfile instead, on the clock of their CPU time, and the
most expensive functions are shown.
"""

import asyncio
import cProfile
import io
import pstats
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np
import uvloop

from benchmarks import cpu, options, repositories
from benchmarks.errors import BenchmarkError
from benchmarks.facts import facts
from benchmarks.report import row, size_text
from naiad_backends.api import Execution, ModelSpec, Placement, Request, Tensor, TensorSpec
from naiad_backends.errors import NaiadError
from naiad_backends.python.backend import PythonBackend
from naiad_backends.python.instance import ProcessInstance
from naiad_backends.services import Alone

LOADS = ((1, 1), (16, 1), (1, 16))
"""Batches under way at a time, and requests in each."""

_FEW = 100
"""Batches that make everything warm."""


@dataclass(frozen=True)
class Cost:
    """Microseconds per request."""

    server: float
    """CPU time of this process."""
    worker: float
    """CPU time of the worker's."""
    wall: float


class Here(Alone):
    """No server, and the loop that runs here."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._here = loop

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._here


async def started(folder: Path, code: str = "triton_identity.py") -> ProcessInstance:
    """An identity model in a process of its own.

    folder: of the model, without a version.  code: its text, of peer_models.
    Raises NaiadError. To be called on the loop on which the instance is to live.
    """
    version = folder / "1"
    version.mkdir()
    shutil.copy(repositories.PEER_MODELS / code, version / "model.py")
    spec = ModelSpec(
        "identity",
        1,
        version,
        max_batch_size=64,
        inputs=(TensorSpec("INPUT0", "FP32", (-1,)),),
        outputs=(TensorSpec("OUTPUT0", "FP32", (-1,)),),
        config="{}",
    )
    backend = PythonBackend({})
    backend.attach(Here(asyncio.get_running_loop()))
    model = await asyncio.to_thread(backend.load, spec)
    instance = await asyncio.to_thread(model.instance, Placement("identity_0"))
    assert isinstance(instance, ProcessInstance)
    return instance


class Callers:
    """Each hands over a batch, and the next one when it is done."""

    def __init__(self, instance: ProcessInstance, payload: int, size: int) -> None:
        """payload: bytes of each request's tensor.  size: requests of a batch."""
        self._instance = instance
        self._size = size
        self._payload = payload
        self._wire = np.random.default_rng(1).random(payload // 4, np.float32).tobytes()
        self._left = self._busy = 0
        self._checked = False

    async def ask(self, count: int, callers: int) -> None:
        """`count` batches, `callers` at a time. Raises BenchmarkError on a wrong answer.

        Only the first answer is compared, of the others the size: comparing costs time.
        """
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = count
        for _ in range(callers):
            self._begin()
        await self._ended

    def _begin(self) -> None:
        if self._left:
            self._left -= 1
            self._busy += 1
            self._instance.begin([self._request() for _ in range(self._size)], (), self._done)

    def _request(self) -> Request:
        # As the front ends make them: a view of the body that came in.
        shape, wire = (1, self._payload // 4), memoryview(self._wire)
        return Request("identity", inputs={"INPUT0": Tensor("INPUT0", "FP32", shape, None, wire)})

    def _done(self, result: Execution | NaiadError | None) -> None:
        self._busy -= 1
        if not self._right(result):
            self._left = 0
            if not self._ended.done():
                self._ended.set_exception(BenchmarkError(f"a wrong answer: {result}"))
            return
        self._begin()
        if not self._busy and not self._ended.done():
            self._ended.set_result(None)

    def _right(self, result: Execution | NaiadError | None) -> bool:
        if not isinstance(result, Execution) or len(result.responses) != self._size:
            return False
        answers = [response.outputs[0].wire() for response in result.responses]
        if not self._checked:
            self._checked = True
            return all(answer == self._wire for answer in answers)
        return all(len(answer) == self._payload for answer in answers)


async def cost(callers: Callers, pid: int, at_a_time: int, size: int, seconds: float) -> Cost:
    """Of about `seconds` of their batches of `size` requests each.

    pid: of the worker, whose CPU time has a resolution of 10 ms.
    """
    begun = time.perf_counter()
    await callers.ask(_FEW, at_a_time)
    count = max(_FEW, round(_FEW * seconds / (time.perf_counter() - begun)))
    before = time.process_time(), cpu.spent(pid).family, time.perf_counter()
    await callers.ask(count, at_a_time)
    after = time.process_time(), cpu.spent(pid).family, time.perf_counter()
    return Cost(*((b - a) / (count * size) * 1e6 for a, b in zip(before, after, strict=True)))


async def measured(payload: int, rounds: int, seconds: float) -> list[list[Cost]]:
    """[load][round] of each of LOADS."""
    with tempfile.TemporaryDirectory(prefix="channel-") as folder:
        instance = await started(Path(folder))
        try:
            found = [
                [
                    await cost(
                        Callers(instance, payload, size), instance.pid, at_a_time, size, seconds
                    )
                    for at_a_time, size in LOADS
                ]
                for _ in range(rounds)
            ]
        finally:
            await asyncio.to_thread(instance.close)
    return [list(each) for each in zip(*found, strict=True)]


async def profiled(payload: int, at_a_time: int, count: int) -> tuple[str, str]:
    """The most expensive functions of both sides, this one first, by their own time."""
    with tempfile.TemporaryDirectory(prefix="channel-") as folder:
        instance = await started(Path(folder), "profiled_identity.py")
        watched = cProfile.Profile(time.thread_time)
        try:
            callers = Callers(instance, payload, 1)
            await callers.ask(_FEW, at_a_time)
            with watched:
                await callers.ask(count, at_a_time)
        finally:
            await asyncio.to_thread(instance.close)
        return _functions(watched), _functions(str(Path(folder) / "1" / "profile"))


def _functions(found: cProfile.Profile | str) -> str:
    text = io.StringIO()
    pstats.Stats(found, stream=text).strip_dirs().sort_stats("tottime").print_stats(25)
    return text.getvalue()


def table(payload: int, costs: Sequence[Sequence[Cost]]) -> str:
    """Medians over rounds.  costs: [load][round], of each of LOADS."""
    head = ["payload", "batches at a time", "requests in each", "server µs", "worker µs", "wall µs"]
    lines = [row(head), row(["---"] * len(head))]
    for load, rounds in zip(LOADS, costs, strict=True):
        figures = [
            median(values)
            for values in zip(*((c.server, c.worker, c.wall) for c in rounds), strict=True)
        ]
        lines.append(row([size_text(payload), *map(str, load), *(f"{us:.1f}" for us in figures)]))
    return "\n".join(lines)


@click.command()
@click.option("--payload", default="64", show_default=True, help="Bytes, such as 64 or 1M.")
@click.option("--rounds", default=5, show_default=True, help="Of which the median is shown.")
@click.option("--seconds", default=0.5, show_default=True, help="Of one measurement.")
@click.option(
    "--profile", is_flag=True, help="Show functions instead: 20,000 batches, 16 at a time."
)
def main(payload: str, rounds: int, seconds: float, profile: bool) -> None:
    """Measures the way to a Python model's process and back; prints µs per request."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            size = options.size(payload)
            if profile:
                click.echo("\n".join(runner.run(profiled(size, 16, 20_000))))
                return
            costs = runner.run(measured(size, rounds, seconds))
        except (BenchmarkError, NaiadError) as error:
            raise click.ClickException(str(error)) from error
    told = facts("benchmarks.channel")
    click.echo("\n".join(f"- {name}: {value}" for name, value in told.items()) + "\n")
    click.echo(table(size, costs))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.scheduler`: what scheduling alone costs, in CPU microseconds per request.

In this process, without a server: callers that ask again when they were answered, and an instance
that does nothing. Inline, it runs on the event loop; elsewhere, it is handed its batches there and
tells of their ends, as a process would; otherwise it runs on a thread of its own, as a model does
that takes longer. Beside it the least that any answer to a waiting caller costs: one future, set by
the loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median

import click
import uvloop

from benchmarks.facts import facts
from benchmarks.report import row
from naiad.core.scheduling.direct import Direct
from naiad.core.scheduling.dynamic import Dynamic
from naiad.core.scheduling.patience import AdaptivePatience, FixedPatience
from naiad.core.stats import ModelStatistics
from naiad.repository.scheduling import DynamicBatching
from naiad_backends.api import (
    Done,
    Execution,
    Instance,
    InstanceState,
    RemoteInstance,
    Request,
    Responder,
    Response,
)

CALLERS = (1, 16, 64)
LARGEST = 64
"""Requests of one batch."""

_REQUEST = Request("m")


class Nothing(Instance):
    """Answers at once, with nothing."""

    def __init__(self, blocking: bool) -> None:
        self.blocking = blocking

    def execute(self, requests: Sequence[Request]) -> Execution:
        """One empty response per request."""
        return Execution([Response() for _ in requests])

    def close(self) -> None:
        """There is nothing to give back."""


class Elsewhere(RemoteInstance):
    """The same, without anything elsewhere."""

    state = InstanceState.READY
    window = 2

    def watch(self, listener: Callable[[], None]) -> None:
        """The state never changes."""

    def begin(
        self, requests: Sequence[Request], responders: Sequence[Responder], done: Done
    ) -> None:
        """One empty response per request."""
        done(Execution([Response() for _ in requests]))

    def execute(self, requests: Sequence[Request]) -> Execution:
        """The same."""
        return Execution([Response() for _ in requests])

    def stream(self, request: Request, responder: Responder) -> None:
        """The same."""
        responder.send(Response(), final=True)

    def close(self) -> None:
        """There is nothing to give back."""


def direct(instance: Instance) -> Direct:
    """The scheduler of models without a batcher."""
    return Direct("m/1", [instance], ModelStatistics())


def dynamic(instance: Instance, auto: bool = False) -> Dynamic:
    """The scheduler with a batcher: no delay, or one that it chooses."""
    patience = AdaptivePatience() if auto else FixedPatience(0)
    return Dynamic(
        "m/1", [instance], ModelStatistics(), DynamicBatching(), LARGEST, lambda _: None, patience
    )


KINDS: dict[str, Callable[[], Direct | Dynamic]] = {
    "direct, inline": lambda: direct(Nothing(False)),
    "dynamic, inline": lambda: dynamic(Nothing(False)),
    "dynamic auto, inline": lambda: dynamic(Nothing(False), auto=True),
    "direct, elsewhere": lambda: direct(Elsewhere()),
    "dynamic, elsewhere": lambda: dynamic(Elsewhere()),
    "direct, thread": lambda: direct(Nothing(True)),
    "dynamic, thread": lambda: dynamic(Nothing(True)),
    "dynamic auto, thread": lambda: dynamic(Nothing(True), auto=True),
}


async def cost(ask: Callable[[], Awaitable[object]], callers: int, count: int) -> float:
    """CPU microseconds of this process per call, with `callers` callers and about `count` calls."""
    each = max(1, count // callers)

    async def caller() -> None:
        for _ in range(each):
            await ask()

    begun = time.process_time()
    await asyncio.gather(*[caller() for _ in range(callers)])
    return (time.process_time() - begun) / (each * callers) * 1e6


async def hop(callers: int, count: int) -> float:
    """The same of a future that the loop sets."""
    loop = asyncio.get_running_loop()

    def ask() -> Awaitable[None]:
        future: asyncio.Future[None] = loop.create_future()
        loop.call_soon(future.set_result, None)
        return future

    return await cost(ask, callers, count)


async def scheduling(kind: str, callers: int, count: int) -> float:
    """The same of a request to a scheduler; kind: of KINDS."""
    scheduler = KINDS[kind]()
    await cost(lambda: scheduler.submit(_REQUEST, 1), callers, count // 10)
    found = await cost(lambda: scheduler.submit(_REQUEST, 1), callers, count)
    await scheduler.drained()
    await scheduler.stop()
    return found


async def _table(count: int, rounds: int) -> str:
    lines = [row(["scheduler", *(f"c={n}" for n in CALLERS)]), row(["---"] * (len(CALLERS) + 1))]
    bare = _medians([[await hop(n, count) for n in CALLERS] for _ in range(rounds)])
    lines.append(row(["bare future", *(f"{us:.1f}" for us in bare)]))
    for kind in KINDS:
        found = [[await scheduling(kind, n, count) for n in CALLERS] for _ in range(rounds)]
        pairs = zip(_medians(found), bare, strict=True)
        lines.append(row([kind, *(f"{us:.1f} ({us - least:.1f})" for us, least in pairs)]))
    return "\n".join(lines)


def _medians(rounds: list[list[float]]) -> list[float]:
    return [median(values) for values in zip(*rounds, strict=True)]


@click.command()
@click.option("--count", default=20_000, show_default=True, help="Requests per measurement.")
@click.option("--rounds", default=5, show_default=True, help="Of which the median is shown.")
def main(count: int, rounds: int) -> None:
    """Measures the schedulers in this process; prints CPU microseconds per request.

    In brackets: more than a bare future.
    """
    told = facts("benchmarks.scheduler")
    click.echo("\n".join(f"- {name}: {value}" for name, value in told.items()) + "\n")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        click.echo(runner.run(_table(count, rounds)))


if __name__ == "__main__":
    main()

"""How long a batch waits: the fixed delay, and the one that follows what is measured."""

import random

from naiad.core.scheduling.batcher import Batcher
from naiad.core.scheduling.patience import AdaptivePatience, FixedPatience, Patience
from naiad.core.scheduling.queue import RequestQueue, Waiting
from naiad.repository.scheduling import QueuePolicy

US = 1000


def learned(fixed_us: int, each_us: int, gap_us: int) -> AdaptivePatience:
    """Patience that has seen batches of 1 to 8 and a request every `gap_us`."""
    patience = AdaptivePatience()
    for size in (1, 4, 8, 2, 6, 3, 7, 5) * 8:
        patience.executed(size, (fixed_us + size * each_us) * US)
    for number in range(200):
        patience.arrived(number * gap_us * US)
    return patience


def test_a_fixed_delay_counts_from_the_oldest() -> None:
    assert FixedPatience(100).until(3, 50, 60) == 150
    assert not FixedPatience(0).waits


def test_nothing_is_waited_for_before_anything_is_known() -> None:
    assert AdaptivePatience().until(1, 0, 5) <= 5


def test_a_batch_without_a_fixed_cost_never_waits() -> None:
    now = 199 * 10 * US
    assert learned(fixed_us=0, each_us=100, gap_us=10).until(1, now, now) <= now


def test_it_waits_while_the_time_of_those_here_costs_less_than_a_batch() -> None:
    patience, now = learned(fixed_us=1000, each_us=100, gap_us=100), 199 * 100 * US
    for size in (1, 4, 9):
        assert patience.until(size, now, now) > now
    assert patience.until(11, now, now) <= now
    # A burst is over when four usual gaps have passed without a request.
    assert patience.until(1, now, now) <= now + 450 * US


def test_rare_requests_are_not_waited_for() -> None:
    now = 199 * 50_000 * US
    assert learned(fixed_us=1000, each_us=100, gap_us=50_000).until(1, now, now) <= now


def test_pauses_between_bursts_do_not_hide_the_gaps_in_them() -> None:
    patience, now = learned(fixed_us=5000, each_us=100, gap_us=100), 199 * 100 * US
    for _ in range(20):
        now += 50_000 * US
        for _ in range(8):
            patience.arrived(now)
            now += 100 * US
    assert patience.until(2, now, now) > now


def closed_loop(patience: Patience, clients: int) -> float:
    """Requests a second of clients that ask again 0.2 ms after each answer, at a model that takes
    2 ms for a batch and 0.1 ms more for each of its elements."""
    draw = random.Random(1)
    queue: RequestQueue[Waiting] = RequestQueue(QueuePolicy(), {})
    batcher = Batcher(queue, (), 64, patience)
    arrivals = sorted(draw.randrange(1000 * US) for _ in range(clients))
    now, free_at, running, answered = 0, 0, 0, 0
    while answered < 5000:
        while arrivals and arrivals[0] <= now:
            patience.arrived(arrivals[0])
            queue.put(Waiting(1, None, arrivals.pop(0)))
        if now >= free_at and running:
            arrivals += [now + int(draw.expovariate(1) * 200 * US) for _ in range(running)]
            arrivals.sort()
            answered += running
            running = 0
        if not running and (batch := batcher.form(now)):
            running = len(batch)
            free_at = now + (2000 + 100 * running) * US
            patience.executed(running, free_at - now)
        moments = [free_at] if running else [batcher.wake] if batcher.wake is not None else []
        now = max(min([*moments, *arrivals[:1]]), now + 1)
    return answered / (now / 1e9)


def test_clients_that_wait_for_their_answers_are_served_as_fast_as_with_the_best_delay() -> None:
    """In simulated time; that it holds on a machine is for the benchmarks to show."""
    for clients in (1, 4, 16):
        best = max(closed_loop(FixedPatience(d * US), clients) for d in (0, 100, 500, 1000, 2000))
        assert closed_loop(AdaptivePatience(), clients) >= 0.9 * best

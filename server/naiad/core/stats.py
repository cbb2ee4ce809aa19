"""Counts and times of one loaded model version, in the terms of the v2 statistics extension.

Touched on the event loop only, so it needs no lock. A reload starts with a fresh object.
"""

import math
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from naiad.core.latencies import Histograms, Summaries

LAST_RESPONSE = 255
"""The place in a request from which on all responses count as one: a stream may be endless."""


class Failure(StrEnum):
    """Why a request failed, by the names that Triton's metrics have for it.

    REJECTED: by the queue.  CANCELED: its client left.  BACKEND: the model's own error.
    """

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


def _no_failures() -> dict[Failure, int]:
    return dict.fromkeys(Failure, 0)


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more, of this many nanoseconds."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStatistics:
    """Executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class ResponseStatistics:
    """Responses at one place in a decoupled model's requests, the first being 0. What is behind
    LAST_RESPONSE counts there."""

    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty_response: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


class Phases(NamedTuple):
    """When one execution passed each mark, all by `time.perf_counter_ns()`."""

    start: int
    compute_start: int
    compute_end: int
    end: int


@dataclass(slots=True)
class ModelStatistics:
    """What `GET /v2/models/M/stats` reports; names and meanings are the protocol's.

    last_inference: milliseconds since the epoch of the last execution, 0 for never.
    inference_count: batch elements of successful requests, but for those that a cache answered.
    execution_count: how often an instance ran.
    failures: the failed requests of `fail` by reason.
    histograms, summaries: how the durations of `success` to `compute_output` are spread; for
        metrics, None if these do not tell.
    """

    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    responses: dict[int, ResponseStatistics] = field(default_factory=dict)
    failures: dict[Failure, int] = field(default_factory=_no_failures)
    histograms: Histograms | None = None
    summaries: Summaries | None = None

    def executed(self, batch_size: int, phases: Phases) -> None:
        """One execution of a batch has ended, well or not."""
        self.execution_count += 1
        self.last_inference = time.time_ns() // 1_000_000
        batch = self.batches.get(batch_size)
        if batch is None:
            batch = self.batches[batch_size] = BatchStatistics()
        start, compute_start, compute_end, end = phases
        duration = batch.compute_input
        duration.count += 1
        duration.ns += compute_start - start
        duration = batch.compute_infer
        duration.count += 1
        duration.ns += compute_end - compute_start
        duration = batch.compute_output
        duration.count += 1
        duration.ns += end - compute_end

    def succeeded(
        self, batch_size: int, enqueued: int, phases: Phases, now: int, first: int = 0
    ) -> None:
        """One request of the batch was answered; times by `time.perf_counter_ns()`.

        first: when its first response was there, if that was not now.
        """
        start, compute_start, compute_end, end = phases
        request, queue = now - enqueued, start - enqueued
        prepare, infer, output = (
            compute_start - start,
            compute_end - compute_start,
            end - compute_end,
        )
        self.inference_count += batch_size
        # Written out, because five calls take thrice as long.
        duration = self.success
        duration.count += 1
        duration.ns += request
        duration = self.queue
        duration.count += 1
        duration.ns += queue
        duration = self.compute_input
        duration.count += 1
        duration.ns += prepare
        duration = self.compute_infer
        duration.count += 1
        duration.ns += infer
        duration = self.compute_output
        duration.count += 1
        duration.ns += output
        if self.histograms is not None:
            self.histograms.add((first or now) - enqueued, request, queue, prepare, infer, output)
        if self.summaries is not None:
            self.summaries.add(now, request, queue, prepare, infer, output)

    def found(self, queue_ns: int, lookup_ns: int) -> None:
        """One request was answered without a run of its own: from a cache, or by the run of an
        equal request, for which it waited `queue_ns`.  lookup_ns: the search for its answer."""
        request = queue_ns + lookup_ns
        self.success.add(request)
        self.queue.add(queue_ns)
        self.cache_hit.add(lookup_ns)
        if self.histograms is not None:
            self.histograms.add_hit(request, queue_ns)
        if self.summaries is not None:
            self.summaries.add_hit(time.perf_counter_ns(), request, queue_ns, lookup_ns)

    def missed(self, ns: int) -> None:
        """One request that succeeded was searched for in a cache in vain and then put there, which
        took so long beside what `succeeded` was told."""
        self.cache_miss.add(ns)
        self.success.ns += ns
        if self.summaries is not None:
            self.summaries.add_miss(time.perf_counter_ns(), ns)

    def usual_seconds(self) -> int:
        """How long answered requests took on average, from 1 to 60 s: a guess at when a server that
        is full has room again."""
        mean_ns = self.success.ns / self.success.count if self.success.count else 0.0
        return min(max(math.ceil(mean_ns / 1e9), 1), 60)

    def responded(self, index: int, outcome: str, compute_ns: int, output_ns: int) -> None:
        """One response of a decoupled model has been delivered.

        outcome: `success`, `fail`, `empty_response` or `cancel`; the last two are no output of the
        model, so that they have a time but no phases.  compute_ns: since the response before it, or
        since the execution began.  output_ns: from the model to the event loop.
        """
        index = min(index, LAST_RESPONSE)
        response = self.responses.get(index)
        if response is None:
            response = self.responses[index] = ResponseStatistics()
        if outcome in ("success", "fail"):
            response.compute_infer.add(compute_ns)
            response.compute_output.add(output_ns)
        duration: Duration = getattr(response, outcome)
        duration.add(compute_ns + output_ns)

    def failed(self, enqueued: int, now: int, reason: Failure) -> None:
        """One request failed or was cancelled after it had been accepted."""
        self.fail.add(now - enqueued)
        self.failures[reason] += 1

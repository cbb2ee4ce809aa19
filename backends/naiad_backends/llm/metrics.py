"""What an instance tells of its engine and its requests, under vLLM's names.

Source of names, labels and buckets: vLLM. The buckets of latencies between tokens have finer ones
below. Knows nothing of how requests run.
"""

from collections.abc import Mapping, Sequence
from itertools import count

from naiad_backends.llm.messages import Ready, Stats
from naiad_backends.services import CustomMetrics

_OWNERS = count(1)

_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP = (1.0, *(float(2**power) for power in range(3, 15)))
_TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
_FEW = (1.0, 2.0, 5.0, 10.0, 20.0)

REASONS = ("stop", "length", "abort", "error")
REJECTIONS = ("max_num_queued_reqs", "max_num_queued_tokens")

_GAUGES: Mapping[str, str] = {
    "num_requests_running": "Requests in the engine's batch",
    "num_requests_waiting": "Requests that wait for the engine",
    "kv_cache_usage_perc": "Part of the KV cache that is in use, 1 is all",
}
_COUNTERS: Mapping[str, str] = {
    "prompt_tokens_total": "Tokens of prompts, those that the prefix cache had among them",
    "prompt_tokens_cached_total": "Tokens of prompts that the prefix cache had",
    "generation_tokens_total": "Tokens that were written",
    "prefix_cache_queries_total": "Tokens that were looked for in the prefix cache",
    "prefix_cache_hits_total": "Tokens that the prefix cache had",
    "num_preemptions_total": "Requests that had to make room and begin anew",
}
_HISTOGRAMS: Mapping[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token", _FIRST),
    "inter_token_latency_seconds": ("From one token to the next", _BETWEEN),
    "request_time_per_output_token_seconds": ("Mean time per token after the first", _BETWEEN),
    "e2e_request_latency_seconds": ("From a request's arrival to its end", _WHOLE),
    "request_queue_time_seconds": ("Until the engine's first step for a request", _WHOLE),
    "request_inference_time_seconds": ("From that step to the end", _WHOLE),
    "request_prefill_time_seconds": ("From that step to the first token", _WHOLE),
    "request_decode_time_seconds": ("From the first token to the last", _WHOLE),
    "request_prompt_tokens": ("Tokens of a request's prompt", _TOKENS),
    "request_generation_tokens": ("Tokens that a request was answered with", _TOKENS),
    "request_params_n": ("Choices that a request asked for", _FEW),
    "request_params_max_tokens": ("Tokens that a request asked for at most", _TOKENS),
    "iteration_tokens_total": ("Tokens of a step of the engine", _STEP),
}
_OF_STATS: Mapping[str, str] = {
    "prefix_queries": "prefix_cache_queries_total",
    "prefix_hits": "prefix_cache_hits_total",
    "preemptions": "num_preemptions_total",
}

NAMES = (
    *_GAUGES,
    *_COUNTERS,
    *_HISTOGRAMS,
    *("request_success_total", "admission_rejections_total", "cache_config_info"),
)
"""All of them, without `vllm:`."""


class EngineMetrics:
    """Of one instance. On the event loop."""

    def __init__(self, metrics: CustomMetrics, model: str, engine: int) -> None:
        """model, engine: labels."""
        self._metrics = metrics
        self._owner = f"llm-{next(_OWNERS)}"
        self._labels = {"model_name": model, "engine": str(engine)}
        self._handles: dict[str, int] = {}
        self._last = Stats()
        for name, text in _GAUGES.items():
            self._make(name, text, "GAUGE")
        for name, text in _COUNTERS.items():
            self._make(name, text, "COUNTER")
        for name, (text, buckets) in _HISTOGRAMS.items():
            self._make(name, text, "HISTOGRAM", buckets=buckets)
        for reason in REASONS:
            self._make(
                "request_success_total",
                "Requests that have ended",
                "COUNTER",
                "finished_reason",
                reason,
            )
        for reason in REJECTIONS:
            text = "Requests that were refused because too many wait"
            self._make("admission_rejections_total", text, "COUNTER", "reason", reason)

    def _make(
        self,
        name: str,
        text: str,
        kind: str,
        label: str = "",
        value: str = "",
        buckets: Sequence[float] | None = None,
    ) -> None:
        handle = self._handles[name + value] = len(self._handles)
        labels = {**self._labels, label: value} if label else self._labels
        self._metrics.family(self._owner, f"vllm:{name}", text, kind)
        self._metrics.metric(self._owner, handle, f"vllm:{name}", labels, buckets)

    def begin(self, ready: Ready) -> None:
        """A new engine counts from 0."""
        self._last = Stats()
        name, handle = "cache_config_info", self._handles.get("cache_config_info")
        if handle is None:
            handle = self._handles[name] = len(self._handles)
        else:
            self._metrics.drop_metric(self._owner, handle)
        labels = {"block_size": str(ready.block_size), "num_gpu_blocks": str(ready.blocks)}
        self._metrics.family(self._owner, f"vllm:{name}", "The KV cache", "GAUGE")
        self._metrics.metric(self._owner, handle, f"vllm:{name}", {**self._labels, **labels}, None)
        self._metrics.update(self._owner, handle, "set", 1)

    def observe(self, name: str, value: float) -> None:
        """Into a histogram."""
        self._metrics.update(self._owner, self._handles[name], "observe", value)

    def add(self, name: str, label: str = "", number: float = 1) -> None:
        """To a counter. label: the value of the label that it has beside the usual ones."""
        self._metrics.update(self._owner, self._handles[name + label], "increment", number)

    def finished(
        self,
        reason: str,
        *,
        seconds: float,
        queued: float,
        first: float,
        decode: float,
        prompt: int,
        tokens: int,
        limit: int,
    ) -> None:
        """A text has come to its end.

        seconds, first: from its arrival to the end, and to its first token.  queued: before the
        engine's first step for it.  decode: from the first token to the last.
        prompt, tokens, limit: tokens of the prompt, of the answer, and at most.
        """
        self.add("request_success_total", reason)
        self.observe("e2e_request_latency_seconds", seconds)
        self.observe("request_queue_time_seconds", queued)
        self.observe("request_inference_time_seconds", max(seconds - queued, 0))
        self.observe("request_prefill_time_seconds", max(first - queued, 0))
        self.observe("request_decode_time_seconds", decode)
        self.observe("request_prompt_tokens", prompt)
        self.observe("request_generation_tokens", tokens)
        self.observe("request_params_max_tokens", limit)
        if tokens > 1:
            self.observe("request_time_per_output_token_seconds", decode / (tokens - 1))

    def lost(self) -> None:
        """The engine is gone, and nothing runs."""
        self.stats(Stats(steps=self._last.steps))

    def stats(self, now: Stats) -> None:
        """What the engine counts."""
        last, self._last = self._last, now
        for name, value in (
            ("num_requests_running", now.running),
            ("num_requests_waiting", now.waiting),
            ("kv_cache_usage_perc", now.kv_usage),
        ):
            self._metrics.update(self._owner, self._handles[name], "set", value)
        if now.steps > last.steps:
            tokens = (now.step_tokens - last.step_tokens) / (now.steps - last.steps)
            self.observe("iteration_tokens_total", tokens)
        for field, name in _OF_STATS.items():
            more = getattr(now, field) - getattr(last, field)
            if more > 0:
                self.add(name, number=more)

    def close(self) -> None:
        """The instance is gone."""
        self._metrics.forget(self._owner)

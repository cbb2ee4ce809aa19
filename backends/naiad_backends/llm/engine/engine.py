"""The engine of a model that writes text: `step` is schedule, forward, sample, append, emit.

Owns the requests from `add` to their last output. Knows tokens; no text, no socket, no process.

Overlap. With a runner that `overlaps`, two steps are under way: `step` hands the next one over and
then appends the tokens of the one before, while the device computes. For that:

- `Scheduler.schedule` counts the tokens that are still being chosen as there (`Sequence.pending`),
  and knows from its limit when a sequence needs no more. A stop token is seen one step late: the
  row that was computed in vain is dropped, since its sequence is `done`.
- `Step.tokens` has -1 - i where a sequence goes on with the i-th token that the step before chose.
- `Runner.forward` and `Sampler.sample` return at once; `Sampled.tokens` is what waits.
- Blocks of a sequence that left may be given away while a step still writes into them: steps are
  computed in order, so the new owner's values come later. The prefix cache learns of a block only
  once its step is over.

A proposer would append its guesses to what a sequence has before `schedule`, which then grants all
of them at once, and `_append` would keep those that the sampler accepts.
"""

import math
import time
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from naiad_backends.llm.engine.batch import Batch, scored_positions
from naiad_backends.llm.engine.blocks import Blocks
from naiad_backends.llm.engine.draws import NOT_FINITE
from naiad_backends.llm.engine.runner import Runner, Step
from naiad_backends.llm.engine.sampler import Sampled, Sampler
from naiad_backends.llm.engine.scheduler import Limits, Plan, Scheduler
from naiad_backends.llm.engine.sequence import Sequence
from naiad_backends.llm.engine.work import Work
from naiad_backends.llm.messages import (
    Abort,
    Add,
    Output,
    Outputs,
    Pool,
    Ready,
    ResetPrefixCache,
    Scored,
    Stats,
    ToEngine,
)
from naiad_backends.llm.options import Options


@dataclass(slots=True)
class _Flight:
    """A step that is under way."""

    plan: Plan
    sampled: Sampled


class Engine(Work):
    """Runs requests on a runner, which it closes with itself."""

    def __init__(self, runner: Runner, sampler: Sampler, options: Options) -> None:
        self._runner = runner
        self._sampler = sampler
        size = runner.block_size
        self._room = min(runner.max_model_len, (runner.blocks - 1) * size + 1)
        limits = _limits(options, runner.max_tokens)
        self._scheduler = Scheduler(Blocks(runner.blocks), size, limits)
        self._batch = Batch(self._scheduler.rows, -(-self._room // size), size)
        self._depth = 2 if runner.overlaps else 1
        self._flights: deque[_Flight] = deque()
        self._outputs: list[Output] = []
        self._arrived = 0
        self._steps = self._step_tokens = self._prompt_tokens = 0
        self.ready = Ready(
            runner.max_model_len, runner.blocks, size, runner.vocab_size, 0, runner.description
        )

    @property
    def idle(self) -> bool:
        """Nothing to do until something is added."""
        scheduler = self._scheduler
        return not (self._outputs or self._flights or scheduler.waiting or scheduler.running)

    def take(self, message: ToEngine) -> None:
        """Accept a message."""
        match message:
            case Add():
                self.add(message)
            case Abort():
                self.abort(message.numbers)
            case ResetPrefixCache():
                self._scheduler.blocks.reset()
            case Pool():
                self._refuse(message.number, "this model writes text, it makes no vectors")

    def run(self) -> Outputs:
        """One step, as a message."""
        return Outputs(self.step(), self.stats())

    def add(self, add: Add) -> None:
        """Queue a request. One that can never run is answered by the next step."""
        reason = self._objection(add)
        if reason:
            self._refuse(add.number, reason)
            return
        prompt = array("i", add.prompt)
        sequence = Sequence(
            number=add.number,
            order=self._arrived,
            tokens=prompt,
            num_prompt=len(prompt),
            limit=min(len(prompt) + add.sampling.max_tokens, self._room),
            sampling=add.sampling,
            stop=frozenset(add.sampling.stop),
            priority=add.priority,
            arrival=time.time(),
            deadline=add.deadline,
            salt=add.salt.encode(),
        )
        self._arrived += 1
        self._scheduler.add(sequence)

    def abort(self, numbers: Iterable[int]) -> None:
        """Forget requests, from this moment on; unknown ones have ended already."""
        for number in numbers:
            sequence = self._scheduler.find(number)
            if sequence:
                self._end(sequence)
        gone = set(numbers)
        self._outputs = [output for output in self._outputs if output.number not in gone]

    def fail(self, reason: str) -> Outputs:
        """End all that run, whose step was lost, with an error."""
        while self._flights:
            plan = self._flights.popleft().plan
            for index in plan.chosen:
                plan.sequences[index].pending -= 1
        for sequence in self._scheduler.running:
            self._end(sequence)
            self._outputs.append(_output(sequence, [], "error", error=reason))
        return Outputs(self._emit(), self.stats())

    def stats(self) -> Stats:
        """The engine now."""
        scheduler = self._scheduler
        blocks = scheduler.blocks
        return Stats(
            running=len(scheduler.running),
            waiting=scheduler.waiting,
            kv_usage=blocks.usage,
            steps=self._steps,
            step_tokens=self._step_tokens,
            prefix_queries=blocks.queries,
            prefix_hits=blocks.hits,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
        )

    def close(self) -> None:
        """Give back everything."""
        self._runner.close()

    def step(self) -> list[Output]:
        """Advance every request that can; what became of them."""
        plan = self._scheduler.schedule(time.time())
        self._follow(plan)
        if plan.sequences:
            self._flights.append(self._launch(plan))
        if self._flights and (len(self._flights) == self._depth or not plan.sequences):
            self._append(self._flights.popleft())
        return self._emit()

    def _follow(self, plan: Plan) -> None:
        """Tell the sampler who came and went."""
        for sequence in plan.expired:
            self._sampler.remove(sequence.number)
            self._outputs.append(_output(sequence, [], "timeout"))
        for sequence in plan.preempted:
            self._sampler.remove(sequence.number)
        for sequence, index in plan.grown:
            if not index:
                prompt, output = _split(sequence)
                self._sampler.add(sequence.number, sequence.sampling, prompt, output)

    def _launch(self, plan: Plan) -> _Flight:
        """Forward and sample."""
        step = self._batch.build(plan)
        logits = self._runner.forward(step)
        self._steps += 1
        self._step_tokens += len(step.tokens)
        if plan.scored:
            logits = self._score(plan, step, logits)
        numbers = [plan.sequences[index].number for index in plan.chosen]
        return _Flight(plan, self._sampler.sample(logits, numbers) if numbers else Sampled([], []))

    def _score(self, plan: Plan, step: Step, logits: Any) -> Any:
        """Score tokens of prompts; the logits that choose next ones."""
        for index, positions in scored_positions(plan):
            sequence = plan.sequences[index]
            token = step.starts[index] + positions.start - plan.starts[index]
            row = int(np.searchsorted(step.rows, token))
            following = sequence.tokens[positions.start + 1 : positions.stop + 1]
            sequence.prompt_scored += self._sampler.score_prompt(
                logits[row : row + len(positions)],
                following,
                sequence.sampling.prompt_logprobs or 0,
            )
        return logits[np.searchsorted(step.rows, step.starts[1:][plan.chosen] - 1)]

    def _append(self, flight: _Flight) -> None:
        """Give each sequence its token, and end those that have their last one."""
        plan, sampled = flight.plan, flight.sampled
        tokens = sampled.tokens
        self._scheduler.publish(plan)
        for row, (index, token) in enumerate(zip(plan.chosen, tokens, strict=True)):
            sequence = plan.sequences[index]
            sequence.pending -= 1
            if sequence.done:
                continue
            scored = sampled.scored[row]
            failed = sampled.failed.get(row) or _unknown(sequence, scored)
            if failed:
                self._end(sequence)
                self._outputs.append(_output(sequence, [], "error", error=failed))
                continue
            self._advance(sequence, token, scored)

    def _emit(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs

    def _advance(self, sequence: Sequence, token: int, scored: Scored | None) -> None:
        """Append a token; say so, and whether it is the last one."""
        if len(sequence.tokens) == sequence.num_prompt:
            self._prompt_tokens += sequence.num_prompt
        sequence.tokens.append(token)
        finish, stop = "", None
        written = len(sequence.tokens) - sequence.num_prompt
        if token in sequence.stop and written > sequence.sampling.min_tokens:
            finish, stop = "stop", token
        elif len(sequence.tokens) == sequence.limit:
            finish = "length"
        self._outputs.append(_output(sequence, [token], finish, stop, scored))
        if finish:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        self._sampler.remove(sequence.number)

    def _objection(self, add: Add) -> str:
        """Why a request can never run; empty if it can."""
        prompt, size = add.prompt, self._runner.vocab_size
        if add.sampling.max_tokens < 1:
            return "max_tokens must be at least 1"
        if not prompt:
            return "the prompt is empty; it needs at least one token"
        if min(prompt) < 0 or max(prompt) >= size:
            return f"the prompt has tokens outside of the vocabulary, which has {size}"
        if len(prompt) >= self._runner.max_model_len:
            room = self._runner.max_model_len
            return f"the prompt has {len(prompt)} tokens, of {room} that it and the answer may have"
        if len(prompt) >= self._room:
            return (
                f"the prompt has {len(prompt)} tokens, the KV cache room for {self._room - 1}; "
                "shorten it, or give the model more kv_cache_memory_bytes"
            )
        return ""

    def _refuse(self, number: int, reason: str) -> None:
        self._outputs.append(Output(number, [], "error", error=reason))


def _limits(options: Options, budget: int) -> Limits:
    return Limits(
        budget=budget,
        share=options.long_prefill_token_threshold or max(1, budget // 2),
        sequences=options.max_num_seqs,
        by_priority=options.scheduling_policy == "priority",
        caching=options.enable_prefix_caching,
    )


def _split(sequence: Sequence) -> "tuple[array[int], array[int]]":
    """The prompt and the output so far."""
    return sequence.tokens[: sequence.num_prompt], sequence.tokens[sequence.num_prompt :]


def _unknown(sequence: Sequence, scored: Scored | None) -> str:
    """Why logprobs that are asked for cannot be told; empty if they can."""
    if scored is None and sequence.sampling.prompt_logprobs is None:
        return ""
    first = len(sequence.tokens) == sequence.num_prompt
    told = [*sequence.prompt_scored, scored] if first else [scored]
    unknown = any(one is not None and math.isnan(one.token.logprob) for one in told)
    return NOT_FINITE if unknown else ""


def _output(
    sequence: Sequence,
    tokens: list[int],
    finish: str,
    stop: int | None = None,
    scored: Scored | None = None,
    error: str = "",
) -> Output:
    first = bool(tokens) and len(sequence.tokens) == sequence.num_prompt + 1
    asked = sequence.sampling.prompt_logprobs is not None
    return Output(
        number=sequence.number,
        tokens=tokens,
        finish=finish,
        stop=stop,
        scored=[] if scored is None else [scored],
        prompt_scored=sequence.prompt_scored if first and asked else None,
        cached=sequence.cached or 0,
        queued=sequence.queued,
        error=error,
    )

"""The engine under any order of arrivals, steps, aborts: right texts, and nothing left behind."""

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.llm.engine.fakes import FakeRunner, FakeSampler, next_token, written

from naiad_backends.llm.engine.engine import Engine
from naiad_backends.llm.messages import Add, Output, ResetPrefixCache
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

# Few different tokens and common beginnings, so that prefixes meet.
PROMPTS = st.builds(
    lambda shared, own: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13][:shared] + own,
    st.integers(0, 13),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
)
STOPS = st.lists(st.integers(0, 49), max_size=4)


@dataclass
class Request:
    """What was asked for, and what came."""

    add: Add
    text: list[int]
    finish: str
    tokens: list[int]
    first: Output | None = None


def expected(add: Add, room: int) -> tuple[list[int], str]:
    """The text and why it ends, told from the model alone."""
    tokens = list(add.prompt)
    while True:
        tokens.append(next_token(tokens))
        count = len(tokens) - len(add.prompt)
        if tokens[-1] in add.sampling.stop and count > add.sampling.min_tokens:
            return tokens[len(add.prompt) :], "stop"
        if count == add.sampling.max_tokens or len(tokens) == room:
            return tokens[len(add.prompt) :], "length"


class EngineMachine(RuleBasedStateMachine):
    """A small cache, so that sequences meet, share and drive each other out."""

    @initialize(
        blocks=st.integers(8, 20),
        budget=st.integers(2, 16),
        sequences=st.integers(1, 6),
        share=st.integers(0, 3),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        overlaps=st.booleans(),
    )
    def begin(
        self,
        blocks: int,
        budget: int,
        sequences: int,
        share: int,
        caching: bool,
        policy: str,
        overlaps: bool,
    ) -> None:
        self.runner = FakeRunner(blocks, 4, budget, 40, overlaps)
        self.sampler = FakeSampler(self.runner)
        self.room = min(40, (blocks - 1) * 4 + 1)
        options = Options(
            max_num_seqs=sequences,
            enable_prefix_caching=caching,
            long_prefill_token_threshold=share,
            scheduling_policy=policy,
        )
        self.engine = Engine(self.runner, self.sampler, options)
        self.requests: dict[int, Request] = {}
        self.number = 0
        self.ended = 0

    @rule(
        prompt=PROMPTS,
        stop=STOPS,
        min_tokens=st.integers(0, 4),
        max_tokens=st.integers(1, 30),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "a"]),
        scores=st.booleans(),
    )
    def add(self, prompt: list[int], priority: int, salt: str, scores: bool, **how: Any) -> None:
        sampling = Sampling(prompt_logprobs=1 if scores else None, **how)
        add = Add(self.number, prompt, sampling, priority, salt=salt)
        self.number += 1
        self.requests[add.number] = Request(add, *expected(add, self.room), [])
        self.engine.add(add)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.requests)))
        del self.requests[number]

        self.engine.abort([number, 10**9])

    @rule()
    def reset(self) -> None:
        self.engine.take(ResetPrefixCache())

    @precondition(lambda self: not self.runner.overlaps or not self.engine.idle)
    @rule()
    def step(self) -> None:
        for output in self.engine.step():
            self.receive(output)

    @precondition(lambda self: self.requests)
    @rule()
    def lose_a_step(self) -> None:
        self.runner.broken = 1
        try:
            outputs = self.engine.step()
        except RuntimeError:
            outputs = self.engine.fail("lost").outputs
        self.runner.broken = 0
        for output in outputs:
            self.receive(output)

    @invariant()
    def counts_agree(self) -> None:
        stats = self.engine.stats()
        assert stats.waiting + stats.running >= len(self.requests) - self.refused()
        assert 0 <= stats.kv_usage <= 1
        assert stats.prefix_hits <= stats.prefix_queries
        assert len(self.sampler.outputs) == stats.running

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        steps = 0
        while not self.engine.idle:
            self.step()
            steps += 1
            assert steps < 3000
        assert self.requests == {}
        assert self.sampler.outputs == {}
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0.0)

    def refused(self) -> int:
        return sum(len(r.add.prompt) >= self.room for r in self.requests.values())

    def receive(self, output: Output) -> None:
        request = self.requests[output.number]
        if output.finish == "error":
            assert output.error == "lost" or len(request.add.prompt) >= self.room
            del self.requests[output.number]
            return
        if request.first is None:
            request.first = output
            self.check_first(request.add, output)
        else:
            assert output.prompt_scored is None
        request.tokens += output.tokens
        assert request.tokens == request.text[: len(request.tokens)]
        if output.finish:
            assert (request.tokens, output.finish) == (request.text, request.finish)
            assert output.stop == (request.text[-1] if output.finish == "stop" else None)
            del self.requests[output.number]

    def check_first(self, add: Add, output: Output) -> None:
        assert output.cached % 4 == 0
        assert output.cached < len(add.prompt)
        if add.sampling.prompt_logprobs is None:
            assert output.prompt_scored is None
            return
        assert output.cached == 0
        assert output.prompt_scored is not None
        first, *others = output.prompt_scored
        assert first is None
        for index, scored in enumerate(others, 1):
            assert scored is not None
            assert scored.token.id == add.prompt[index]
            assert scored.top[0].id == next_token(add.prompt[:index])
        assert len(others) == len(add.prompt) - 1


EngineMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEngineMachine = EngineMachine.TestCase


def test_the_fake_model_writes_what_the_reference_says() -> None:
    assert written([1, 2], 3) == expected(Add(0, [1, 2], Sampling(max_tokens=3)), 99)[0]

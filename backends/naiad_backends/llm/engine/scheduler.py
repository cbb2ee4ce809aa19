"""Which tokens the next step computes. Knows sequences and blocks; no tensors, no model, no clock.

There are no phases. A sequence has some tokens and has computed some of them; a step grants it some
of the rest. A prompt in pieces, one token after the other, a prefix from the cache, and tokens that
a proposer has guessed are all this one rule.

- Who needs one token gets it first, so that prompts delay nobody's text by more than a step.
- Prompts share what is left of the budget, one of them at most `share` of it while others run.
- A sequence enters when its prompt fits into free blocks with one to spare for each that runs. It
  gets all of them at once.
- When blocks run out, the worst sequence leaves and later computes everything again, most of it
  from the prefix cache. In such a step nobody enters. The best one never leaves, so all end.
- A sequence waits while another one is computing the very block that it needs next.
"""

import heapq
from dataclasses import dataclass, field

from naiad_backends.llm.engine.blocks import Blocks, extend_hashes
from naiad_backends.llm.engine.sequence import Sequence

SCORED_TOKENS = 256
"""Tokens of prompts in a step whose logits are kept: each is a row of the vocabulary's size."""
PATIENCE = 64
"""Sequences that a step passes over because another one computes what they need."""

Rank = tuple[int, int]


@dataclass(slots=True)
class Limits:
    """budget: tokens of a step.  share: those of one prompt while others run.  sequences: that run
    at once.  by_priority: before the order of arrival.  caching: of prefixes."""

    budget: int
    share: int
    sequences: int
    by_priority: bool = False
    caching: bool = True


@dataclass(slots=True)
class Plan:
    """What a step computes, and who came and went.

    sequences, starts, counts: who computes how many tokens, from which on; those with one first.
    chosen: indexes of those whose next token the step chooses, ascending.
    grown: whose blocks changed, with the first new one's index; from 0 if it has just entered. One
        that was preempted after that has none.
    preempted: left, and wait again.
    expired: ended by their deadlines.
    scored: tokens of prompts whose logits are kept.
    """

    sequences: list[Sequence] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    grown: list[tuple[Sequence, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    expired: list[Sequence] = field(default_factory=list)
    scored: int = 0


class Scheduler:
    """Sequences from their arrival to their end, and the blocks that they hold.

    For each step `schedule`, then `publish` when it has been computed. Another `schedule` may come
    in between: then the tokens that the first one chooses count as there.
    """

    def __init__(self, blocks: Blocks, block_size: int, limits: Limits) -> None:
        self.blocks = blocks
        self.preemptions = 0
        self._size = block_size
        self._limits = limits
        self._rows = list(range(self.rows))[::-1]
        self._all: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        # Heaps of numbers. Those of sequences that have ended stay until their turn.
        self._waiting: list[tuple[Rank, int]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._promises: dict[bytes, Sequence] = {}

    @property
    def rows(self) -> int:
        """Sequences that can run at once, each in a row from 0; each gets a token in each step."""
        return min(self._limits.sequences, self._limits.budget)

    @property
    def running(self) -> list[Sequence]:
        """In the order in which they entered."""
        return list(self._running.values())

    @property
    def waiting(self) -> int:
        """How many have no blocks."""
        return len(self._all) - len(self._running)

    def add(self, sequence: Sequence) -> None:
        """It wants to run. Its prompt must fit into the cache, and its limit must allow a token."""
        self._all[sequence.number] = sequence
        heapq.heappush(self._waiting, (self._rank(sequence), sequence.number))
        if sequence.deadline:
            heapq.heappush(self._deadlines, (sequence.deadline, sequence.number))

    def find(self, number: int) -> Sequence | None:
        """The sequence of this number, if it has not ended."""
        return self._all.get(number)

    def remove(self, sequence: Sequence) -> None:
        """It ends, whatever it was doing."""
        sequence.done = True
        del self._all[sequence.number]
        if sequence.row >= 0:
            self._leave(sequence)

    def schedule(self, now: float) -> Plan:
        """Choose what to compute, and count it as computed. An empty plan: nobody wants to run."""
        plan = Plan()
        self._expire(plan, now)
        several = self._grant_singles(plan)
        left = self._grant_prompts(plan, several, self._limits.budget - len(plan.sequences))
        if not plan.preempted:
            left = self._admit(plan, left, now)
        if len(plan.sequences) == 1:
            plan.counts[0] += self._grant(plan, plan.sequences[0], left, plan.counts[0])
        self._settle(plan)
        return plan

    def publish(self, plan: Plan) -> None:
        """The plan has been computed: the cache may give its full blocks to others."""
        if not self._limits.caching:
            return
        size = self._size
        for sequence, start, count in zip(plan.sequences, plan.starts, plan.counts, strict=True):
            full = (start + count) // size
            if full > sequence.published and sequence.row >= 0:
                self._publish(sequence, full)

    def _expire(self, plan: Plan, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            sequence = self.find(heapq.heappop(self._deadlines)[1])
            if sequence:
                self.remove(sequence)
                plan.expired.append(sequence)

    def _grant_singles(self, plan: Plan) -> list[Sequence]:
        """Grant a token to all that lack just one; the others that run."""
        several = []
        size = self._size
        for sequence in self.running:
            length = len(sequence.tokens) + sequence.pending
            lacks = length - sequence.computed
            if lacks > 1:
                several.append(sequence)
            elif sequence.row >= 0 and length < sequence.limit and lacks:
                if length > len(sequence.blocks) * size and not self._grow(sequence, plan):
                    continue
                plan.sequences.append(sequence)
                plan.counts.append(1)
        return [sequence for sequence in several if sequence.row >= 0]

    def _grant_prompts(self, plan: Plan, sequences: list[Sequence], left: int) -> int:
        """Share the budget between those that lack more; what is left of it."""
        sequences.sort(key=self._rank)
        for sequence in sequences:
            left -= self._enlist(plan, sequence, min(left, self._limits.share))
        return left

    def _admit(self, plan: Plan, left: int, now: float) -> int:
        """Let sequences enter while there is room; what is left of the budget."""
        passed: list[tuple[Rank, int]] = []
        while left and self._rows and self._waiting and len(passed) < PATIENCE:
            sequence = self.find(self._waiting[0][1])
            if sequence:
                found = self._prefix(sequence)
                if found is None:
                    passed.append(heapq.heappop(self._waiting))
                    continue
                if not self._fits(sequence, found):
                    break
                self._enter(sequence, found, plan, now)
                left -= self._enlist(plan, sequence, min(left, self._limits.share))
            heapq.heappop(self._waiting)
        for entry in passed:
            heapq.heappush(self._waiting, entry)
        return left

    def _settle(self, plan: Plan) -> None:
        """Count what is granted as computed, and the tokens that will be chosen as pending."""
        for index, sequence in enumerate(plan.sequences):
            plan.starts.append(sequence.computed)
            sequence.computed += plan.counts[index]
            if sequence.computed == len(sequence.tokens) + sequence.pending:
                sequence.pending += 1
                plan.chosen.append(index)

    def _enlist(self, plan: Plan, sequence: Sequence, most: int) -> int:
        """Put it into the plan, one token before several; how many it gets."""
        count = self._grant(plan, sequence, most)
        if count == 1:
            plan.sequences.insert(0, sequence)
            plan.counts.insert(0, 1)
        elif count:
            plan.sequences.append(sequence)
            plan.counts.append(count)
        return count

    def _grant(self, plan: Plan, sequence: Sequence, most: int, granted: int = 0) -> int:
        """How many tokens it may compute beyond those granted."""
        count = min(most, sequence.length - sequence.computed - granted)
        if sequence.unscored:
            count = min(count, SCORED_TOKENS - plan.scored)
            plan.scored += count
        return count

    def _grow(self, sequence: Sequence, plan: Plan) -> bool:
        """One more block, if need be from the worst sequence; whether that is another one."""
        while not self.blocks.free:
            worst = max(self._running.values(), key=self._rank)
            self._preempt(worst, plan)
            if worst is sequence:
                return False
        plan.grown.append((sequence, len(sequence.blocks)))
        sequence.blocks += self.blocks.allocate(1)
        return True

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        self._leave(sequence)
        self.preemptions += 1
        heapq.heappush(self._waiting, (self._rank(sequence), sequence.number))
        plan.preempted.append(sequence)
        if sequence in plan.sequences:
            place = plan.sequences.index(sequence)
            del plan.sequences[place], plan.counts[place]

    def _prefix(self, sequence: Sequence) -> list[int] | None:
        """The blocks that the cache has for it; None if it should wait for one more.

        At least one token stays to be computed, because its logits are needed.
        """
        if not self._limits.caching:
            return []
        last = len(sequence.tokens) // self._size
        extend_hashes(sequence.hashes, sequence.tokens, self._size, last, sequence.salt)
        if sequence.unscored:
            return []
        most = (len(sequence.tokens) - 1) // self._size
        found = self.blocks.match(sequence.hashes, most)
        if len(found) < most and sequence.hashes[len(found)] in self._promises:
            return None
        return found

    def _fits(self, sequence: Sequence, found: list[int]) -> bool:
        """Whether there are free blocks for all of its tokens, and one for each that runs."""
        needed = -(-len(sequence.tokens) // self._size) - len(found) + self.blocks.unused(found)
        return needed + len(self._running) <= self.blocks.free

    def _enter(self, sequence: Sequence, found: list[int], plan: Plan, now: float) -> None:
        size = self._size
        self.blocks.share(found)
        more = -(-len(sequence.tokens) // size) - len(found)
        sequence.blocks = found + self.blocks.allocate(more)
        sequence.computed = len(found) * size
        sequence.published = len(found)
        sequence.row = self._rows.pop()
        self._running[sequence.number] = sequence
        plan.grown.append((sequence, 0))
        self._promise(sequence)
        if sequence.cached is None:
            sequence.cached = sequence.computed
            sequence.queued = max(0.0, now - sequence.arrival)
            if self._limits.caching and not sequence.unscored:
                self.blocks.queries += len(sequence.tokens)
                self.blocks.hits += sequence.computed

    def _leave(self, sequence: Sequence) -> None:
        """Give back all that a running sequence has."""
        for digest in sequence.hashes[sequence.published : sequence.promised]:
            if self._promises.get(digest) is sequence:
                del self._promises[digest]
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
        self._rows.append(sequence.row)
        sequence.row = -1
        del self._running[sequence.number]

    def _promise(self, sequence: Sequence) -> None:
        """Others may wait for the blocks that it is going to fill."""
        sequence.promised = len(sequence.hashes)
        for digest in sequence.hashes[sequence.published :]:
            self._promises.setdefault(digest, sequence)

    def _publish(self, sequence: Sequence, full: int) -> None:
        extend_hashes(sequence.hashes, sequence.tokens, self._size, full, sequence.salt)
        for index in range(sequence.published, full):
            digest = sequence.hashes[index]
            self.blocks.publish(sequence.blocks[index], digest)
            if self._promises.get(digest) is sequence:
                del self._promises[digest]
        sequence.published = full

    def _rank(self, sequence: Sequence) -> Rank:
        """Who is served first, and who leaves last."""
        return (sequence.priority if self._limits.by_priority else 0, sequence.order)

"""One request in the engine: plain integers, and nothing that acts on them."""

from array import array
from dataclasses import dataclass, field

from naiad_backends.llm.messages import Scored
from naiad_backends.llm.sampling import Sampling


@dataclass(slots=True, eq=False)
class Sequence:
    """A text that is being written. The scheduler changes what says so, the engine the rest.

    order: of arrival, from 0.  arrival: `time.time()`.
    tokens: the prompt, then what was chosen.
    num_prompt: tokens of the prompt.
    limit: the most that `tokens` may ever have.
    stop: tokens that end it.
    """

    number: int
    order: int
    tokens: "array[int]"
    num_prompt: int
    limit: int
    sampling: Sampling
    stop: frozenset[int]
    priority: int = 0
    arrival: float = 0.0
    deadline: float = 0.0
    salt: bytes = b""

    row: int = -1
    """While it runs, its row in the arrays of the batch (scheduler)."""
    computed: int = 0
    """Tokens that steps were told to compute since it runs, or that the cache had (scheduler)."""
    pending: int = 0
    """Tokens that steps are choosing now, which `tokens` lacks (scheduler)."""
    place: int = 0
    """Which of the tokens that its latest step chooses is its own (batch)."""
    blocks: list[int] = field(default_factory=list)
    """Of the KV cache, in order (scheduler)."""
    hashes: list[bytes] = field(default_factory=list)
    """Of the first full blocks of `tokens`, as far as they were needed (scheduler)."""
    published: int = 0
    """Blocks at the front that the prefix cache has or could have from it (scheduler)."""
    promised: int = 0
    """Blocks at the front that others may expect from it (scheduler)."""
    cached: int | None = None
    """Tokens of the prompt that the prefix cache had; None until it first runs (scheduler)."""
    queued: float = 0.0
    """Seconds until it first ran (scheduler)."""
    done: bool = False
    """It has left the scheduler (scheduler)."""

    prompt_scored: list[Scored | None] = field(default_factory=lambda: [None])
    """Of the prompt's tokens so far, if asked for."""

    @property
    def length(self) -> int:
        """Tokens that it has or is about to have."""
        return len(self.tokens) + self.pending

    @property
    def unscored(self) -> bool:
        """Whether the logits of its prompt are still needed, so that no cache can help."""
        wanted = self.sampling.prompt_logprobs is not None
        return wanted and len(self.prompt_scored) < self.num_prompt

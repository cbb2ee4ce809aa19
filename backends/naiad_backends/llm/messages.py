"""What the server and an engine's process say to each other. Tokens only, no text.

Each message is one msgpack array, framed by `naiad_backends.llm.frames`. How to sample and what to
load are written in `naiad_backends.llm.sampling` and `naiad_backends.llm.options`.
"""

import msgspec

from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling


class Start(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The first message: load this, and answer `Ready` or `Failed`.

    path: the folder of the model, or its GGUF file.  device: `cpu`, or `cuda:N`.
    built: the folder where kernels are built that the wheel has not brought; empty for the user's.
    """

    path: str
    options: Options
    device: str = "cpu"
    built: str = ""


class Add(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Write a text.

    number: of the request, chosen by the server; its answers carry it.
    prompt: at least one token.
    priority: lower is sooner; 0 is usual.  deadline: `time.time()` at which it ends unfinished; 0
        for never.  salt: only requests with the same share the prefix cache.
    """

    number: int
    prompt: list[int]
    sampling: Sampling
    priority: int = 0
    deadline: float = 0.0
    salt: str = ""


class Pool(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Make a vector of a text."""

    number: int
    prompt: list[int]


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Nobody waits for these any more. There is no answer, and none may follow for them."""

    numbers: list[int]


class ResetPrefixCache(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Forget all prefixes that no request is using."""


ToEngine = Add | Pool | Abort | ResetPrefixCache
"""What may follow `Start`. The engine ends when its socket does."""


class Token(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The logprob of one token. rank: 1 is the most likely."""

    id: int
    logprob: float
    rank: int


class Scored(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The token that was chosen (or is there, in a prompt), and the best ones, best first."""

    token: Token
    top: list[Token]


class Output(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a step did for one request.

    tokens: the new ones; a stop token is among them.  finish: `stop`, `length`, `timeout`, `error`,
        or empty while it goes on.  stop: the token that ended it, if one did.
    scored: one for each new token if asked for, else empty.
    prompt_scored: None but for the first output of a request that asked; its first entry is None.
    cached: how many tokens of the prompt the prefix cache had.
    queued: seconds it waited for its first step; both count from the first output on.
    error: why, where `finish` is `error`.
    """

    number: int
    tokens: list[int]
    finish: str = ""
    stop: int | None = None
    scored: list[Scored] = []
    prompt_scored: list[Scored | None] | None = None
    cached: int = 0
    queued: float = 0.0
    error: str = ""


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """The engine now; the last six count since it started."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    steps: int = 0
    step_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The weights are loaded. blocks: of the KV cache, each of `block_size` tokens; 0 if none."""

    max_model_len: int
    blocks: int
    block_size: int
    vocab_size: int
    dimensions: int = 0
    description: str = ""


class Outputs(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """What one step did."""

    outputs: list[Output]
    stats: Stats


class Vectors(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Vectors of texts: FP32, little-endian, one after the other."""

    numbers: list[int]
    data: bytes


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """The engine cannot start, or cannot go on; the process ends. code: one of the eight."""

    code: str
    message: str


FromEngine = Ready | Outputs | Vectors | Failed

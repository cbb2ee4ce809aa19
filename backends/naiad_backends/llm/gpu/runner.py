"""Runs a decoder on a GPU. `forward` queues a step and returns; nobody waits for the device."""

import numpy as np
import torch
from torch import Tensor

from naiad_backends.errors import invalid, unsupported
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.cache import blocks_for
from naiad_backends.llm.engine.runner import Runner, Step
from naiad_backends.llm.gpu.graphs import Graphs
from naiad_backends.llm.gpu.operators import GpuOperators
from naiad_backends.llm.gpu.sampler import GpuSampler
from naiad_backends.llm.gpu.step import Inputs, OnDevice
from naiad_backends.llm.gpu.weights import Loader, dtype_of
from naiad_backends.llm.models.decoder import Decoder
from naiad_backends.llm.options import Options
from naiad_backends.llm.sampling import Sampling

BLOCK_SIZE = 16
MAX_TOKENS = 8192
GRAPHS_BYTES = 512 << 20
"""What CUDA graphs may need besides; they are recorded later."""


class GpuRunner(Runner):
    """checkpoint: limited to the length that the options ask for.  device: `cuda:N`; tests also run
    it on `cpu`, through Triton's interpreter."""

    overlaps = True

    def __init__(self, checkpoint: Checkpoint, options: Options, device: str) -> None:
        a = checkpoint.decoder
        self.device = torch.device(device)
        free = self._claim(options)
        dtype = dtype_of(checkpoint, options.dtype)
        kind = options.kv_cache_dtype
        self._cache_dtype: torch.dtype = dtype if kind == "auto" else getattr(torch, kind)
        self.vocab_size = a.vocab_size
        self.max_model_len = a.max_position
        self.block_size = options.block_size or BLOCK_SIZE
        sequences = options.max_num_seqs
        self.max_tokens = options.max_num_batched_tokens or max(MAX_TOKENS, sequences)
        width = -(-self.max_model_len // self.block_size)
        self._operators = GpuOperators(a, self.block_size, sequences, dtype, self.device)
        self._inputs = Inputs(
            self.max_tokens, sequences, width, self.block_size, self._operators.queries, self.device
        )
        loader = Loader(dtype, self.device)
        self._decoder = Decoder(checkpoint, loader.linear, loader.tensor, self._operators, dtype)
        self._logits = torch.empty(sequences, self.vocab_size, device=self.device)
        self._graphs: Graphs | None = None
        self.blocks = self._size_cache(options, free)
        self._operators.cache = self._make_cache(self.blocks)
        if self.device.type == "cuda" and not options.enforce_eager:
            self._graphs = Graphs(self._decode, sequences)
        if self.device.type == "cuda":
            self._warm_up()
        how = "CUDA graphs" if self._graphs else "no CUDA graphs"
        self.description = f"Triton kernels on {self.device}, {str(dtype).split('.')[1]}, {how}"

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        count = len(step.lengths)
        if self._graphs and len(step.tokens) == count:
            size = self._graphs.size(count)
            loaded = self._inputs.load(step, size)
            self._graphs.run(size)
            if len(step.rows) == count:
                return self._logits[:count]
            return self._logits.index_select(0, loaded.rows)
        return self._compute(self._inputs.load(step))

    def make_sampler(self) -> GpuSampler:
        """It leaves the tokens of a step where the next one finds them."""
        return GpuSampler(self.vocab_size, self._inputs.chosen)

    def close(self) -> None:
        """Python frees all of it with the runner."""

    def _compute(self, step: OnDevice) -> Tensor:
        self._operators.begin(step)
        hidden = self._decoder.hidden(step.tokens)
        return self._decoder.logits(hidden.index_select(0, step.rows))

    def _decode(self, size: int) -> None:
        """What a graph does."""
        step = self._inputs.view(size, size)
        self._operators.begin(step)
        self._logits[:size].copy_(self._decoder.logits(self._decoder.hidden(step.tokens)))

    def _warm_up(self) -> None:
        """Compile what the first request needs."""
        sampler = self.make_sampler()
        sampler.add(0, Sampling(), [0])
        for tokens in (2, 1):
            zeros, ones = np.zeros(tokens, np.int32), np.ones(1, np.int32)
            starts = np.array([0, tokens], np.int32)
            blocks = np.zeros((1, 1), np.int32)
            step = Step(zeros, zeros, zeros, starts, tokens * ones, blocks, ones * (tokens - 1))
            sampler.sample(self.forward(step), [0])

    def _claim(self, options: Options) -> int:
        """Bytes of the GPU that this model may take."""
        if self.device.type != "cuda":
            return 0
        if not torch.cuda.is_available():
            raise unsupported(
                f"the torch that is installed ({torch.__version__}) finds no GPU; install one that "
                "was built for CUDA, or look at its driver with nvidia-smi"
            )
        torch.cuda.set_device(self.device)
        free, total = torch.cuda.mem_get_info(self.device)
        return min(free, int(total * options.gpu_memory_utilization))

    def _size_cache(self, options: Options, claimed: int) -> int:
        """Compute the largest step, and leave to the cache what that does not need."""
        free = 0
        if self.device.type == "cuda" and not options.kv_cache_memory_bytes:
            self._operators.cache = self._make_cache(1)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.forward(largest_step(self, options.max_num_seqs))
            torch.cuda.synchronize(self.device)
            needed = torch.cuda.max_memory_reserved(self.device)
            torch.cuda.empty_cache()
            free = claimed - needed - GRAPHS_BYTES
            if free <= 0:
                raise invalid(
                    f"weights and one step need {needed / 2**20:,.0f} MiB of the GPU's memory, and "
                    f"{claimed / 2**20:,.0f} MiB may be used",
                    field="gpu_memory_utilization",
                    hint="raise it, or lower max_num_batched_tokens",
                )
        a = self._decoder.architecture
        return blocks_for(options, a, self.block_size, self._cache_dtype.itemsize, free)

    def _make_cache(self, blocks: int) -> list[tuple[Tensor, Tensor]]:
        a = self._decoder.architecture
        shape = (len(a.layers), 2, blocks, a.num_kv_heads, self.block_size, a.head_dim)
        cache = torch.zeros(shape, dtype=self._cache_dtype, device=self.device)
        return [(keys, values) for keys, values in cache]


def largest_step(runner: Runner, sequences: int) -> Step:
    """As many tokens and sequences as a step may have, all in block 0."""
    tokens = min(runner.max_tokens, sequences * runner.max_model_len)
    count = min(sequences, tokens)
    counts = np.full(count, tokens // count, np.int32)
    counts[count - tokens % count :] += 1
    starts = np.zeros(count + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    zeros = np.zeros(tokens, np.int32)
    blocks = np.zeros((count, -(-int(counts.max()) // runner.block_size)), np.int32)
    positions = np.arange(tokens, dtype=np.int32) - np.repeat(starts[:-1], counts)
    return Step(zeros, positions, zeros, starts, counts, blocks, starts[1:] - 1)

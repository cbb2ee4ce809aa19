"""Runs a decoder on a CPU with torch alone: what is left where nothing faster can be built."""

import numpy as np
import torch

from naiad_backends.errors import unsupported
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.cache import blocks_for
from naiad_backends.llm.engine.runner import Runner, Step
from naiad_backends.llm.engine.sampler import Logits
from naiad_backends.llm.models.attention import PagedAttention
from naiad_backends.llm.models.cpu import CpuOperators
from naiad_backends.llm.models.decoder import Decoder
from naiad_backends.llm.models.linear import Int8, as_tensor, has_fbgemm, linear_for
from naiad_backends.llm.models.rotation import can_rotate, rotated
from naiad_backends.llm.models.traced import TracedDecoder, can_trace
from naiad_backends.llm.options import Options

BLOCK_SIZE = 32
MAX_TOKENS = 512


class TorchRunner(Runner):
    """checkpoint: limited to the length that the options ask for."""

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        if options.kv_cache_dtype not in ("auto", "float32"):
            raise unsupported(
                f"a KV cache of {options.kv_cache_dtype} with torch's operators on a CPU",
                field="kv_cache_dtype",
            )
        if options.threads:
            torch.set_num_threads(options.threads)
        a = checkpoint.decoder
        self.vocab_size = a.vocab_size
        self.max_model_len = a.max_position
        self.block_size = options.block_size or BLOCK_SIZE
        self.max_tokens = options.max_num_batched_tokens or max(MAX_TOKENS, options.max_num_seqs)
        self.blocks = blocks_for(options, a, self.block_size, torch.float32.itemsize)
        paged = PagedAttention(a, self.blocks, self.block_size)
        make, middle, bits = linear_for(options.dtype), None, ""
        if _wants_8_bits(checkpoint, options):
            turned = rotated(checkpoint)
            checkpoint, make, middle = turned.checkpoint, Int8, turned.middle
            bits = ", 8 bits"
        self.operators = CpuOperators(checkpoint.decoder, paged, middle)
        self.decoder = Decoder(checkpoint, make, as_tensor, self.operators, torch.float32)
        self.singles: Decoder | TracedDecoder = self.decoder
        if can_trace(self.decoder):
            self.singles = TracedDecoder(self.decoder, self.operators)
            self._record()
        threads = torch.get_num_threads()
        self.description = f"torch, dtype {options.dtype}{bits}, {threads} threads"

    def _record(self) -> None:
        """So that no request waits for it: torch records at the first call, optimizes at the
        second."""
        one, none = np.ones(1, np.int32), np.zeros(1, np.int32)
        block = none[:, None]
        step = Step(none, none, none, np.array([0, 1], np.int32), one, block, none)
        for _ in range(2):
            self.forward(step)

    @torch.inference_mode()
    def forward(self, step: Step) -> Logits:
        self.operators.begin(step)
        decoder = self.singles if len(step.tokens) == len(step.lengths) else self.decoder
        hidden = decoder.hidden(torch.from_numpy(step.tokens))
        if len(step.rows) < len(hidden):
            hidden = hidden.index_select(0, torch.from_numpy(step.rows))
        logits: Logits = self.decoder.logits(hidden).numpy()
        return logits

    def close(self) -> None:
        """Python frees all of it with the runner."""


def _wants_8_bits(checkpoint: Checkpoint, options: Options) -> bool:
    """What the file has packed stays so, if it can and nothing else is asked for."""
    packed = checkpoint.weight("layers.0.q").quantized
    return options.dtype == "auto" and packed and can_rotate(checkpoint.decoder) and has_fbgemm()

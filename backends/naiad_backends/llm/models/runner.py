"""Runs a decoder on a CPU with torch alone: what is left where nothing faster can be built."""

import torch
from torch import Tensor

from naiad_backends.errors import unsupported
from naiad_backends.llm.checkpoint.weights import Checkpoint
from naiad_backends.llm.engine.cache import blocks_for
from naiad_backends.llm.engine.runner import Runner, Step
from naiad_backends.llm.models.attention import Layout, PagedAttention
from naiad_backends.llm.models.cpu import CpuOperators
from naiad_backends.llm.models.decoder import Decoder
from naiad_backends.llm.models.linear import as_tensor, has_fbgemm, int8, linear_for
from naiad_backends.llm.models.rotation import can_rotate, rotated
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
        layout = Layout(a.num_kv_heads, a.head_dim, self.blocks, self.block_size)
        paged = PagedAttention(len(a.layers), a.num_heads, layout)
        make, middle, bits = linear_for(options.dtype), None, ""
        if _wants_8_bits(checkpoint, options):
            turned = rotated(checkpoint)
            checkpoint, make, middle = turned.checkpoint, int8, turned.middle
            bits = ", 8 bits"
        self.operators = CpuOperators(checkpoint.decoder.ropes, paged, middle)
        self.decoder = Decoder(checkpoint, make, as_tensor, self.operators, torch.float32)
        threads = torch.get_num_threads()
        self.description = f"torch, dtype {options.dtype}{bits}, {threads} threads"

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        self.operators.begin(step)
        hidden = self.decoder.hidden(torch.from_numpy(step.tokens))
        if len(step.rows) < len(hidden):
            hidden = hidden.index_select(0, torch.from_numpy(step.rows))
        return self.decoder.logits(hidden)

    def close(self) -> None:
        """Python frees all of it with the runner."""


def _wants_8_bits(checkpoint: Checkpoint, options: Options) -> bool:
    """What the file has packed stays so, if it can and nothing else is asked for."""
    packed = checkpoint.weight("layers.0.q").quantized
    return options.dtype == "auto" and packed and can_rotate(checkpoint.decoder) and has_fbgemm()

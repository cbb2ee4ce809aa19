"""The decoder's operators on a GPU: our kernels, put together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from naiad_backends.llm.checkpoint.architecture import Architecture, Rope
from naiad_backends.llm.gpu.activation import gated
from naiad_backends.llm.gpu.attention import (
    Decode,
    Shape,
    decode_tiles,
    extend,
    extend_tiles,
)
from naiad_backends.llm.gpu.norm import add_rms_norm, rms_norm
from naiad_backends.llm.gpu.rope import HeadNorms, Rotation, rope_and_store
from naiad_backends.llm.gpu.step import OnDevice
from naiad_backends.llm.models.operators import Activation, AttentionLayer, Operators


class GpuOperators(Operators):
    """cache: of each layer its keys and its values, [blocks, kv_heads, block_size, head_dim]; the
    runner sets it.  sequences: the most of a step."""

    cache: Sequence[tuple[Tensor, Tensor]]

    def __init__(
        self,
        architecture: Architecture,
        block_size: int,
        sequences: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        a = architecture
        self._shape = Shape(
            a.num_heads, a.num_kv_heads, a.head_dim, block_size, a.attention_scale, a.score_softcap
        )
        self._tile = extend_tiles(self._shape, dtype)
        self._decode = Decode(
            self._shape,
            [layer.window for layer in a.layers],
            sequences,
            programs(device),
            device,
            decode_tiles(self._shape, dtype),
        )
        self._rotations = [_rotation(rope, device) for rope in a.ropes]
        self._step: OnDevice

    @property
    def queries(self) -> int:
        """Of a tile of a prompt."""
        return self._tile.rows // self._shape.group

    def begin(self, step: OnDevice) -> None:
        """Tell of the step that is computed next."""
        self._step = step
        if step.singles:
            self._decode.plan(step.lengths[: step.singles])

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def add_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x, residual, weight, eps), residual

    def gate(self, x: Tensor, activation: Activation) -> Tensor:
        return gated(x, activation)

    def attention(self, qkv: Tensor, layer: AttentionLayer) -> Tensor:
        step, n = self._step, self._step.singles
        keys, values = self.cache[layer.index]
        rotation = None if layer.rope is None else self._rotations[layer.rope]
        norms = None
        if layer.q_norm is not None and layer.k_norm is not None:
            norms = HeadNorms(layer.q_norm, layer.k_norm, layer.eps)
        q = rope_and_store(
            qkv, keys, values, step.positions, step.slots, layer.num_heads, rotation, norms
        )
        out = torch.empty_like(q)
        if n:
            self._decode(out[:n], q[:n], keys, values, step.blocks, step.lengths[:n], layer.window)
        if len(step.tiles):
            extend(
                self._shape,
                out,
                q,
                keys,
                values,
                step.blocks,
                step.starts,
                step.lengths,
                step.tiles,
                layer.window,
                self._tile,
            )
        return out.view(len(out), -1)


def programs(device: torch.device) -> int:
    """How many parts of attention a GPU should have to do at once: two for each multiprocessor."""
    if device.type != "cuda":
        return 8
    return 2 * int(torch.cuda.get_device_properties(device).multi_processor_count)


def _rotation(rope: Rope, device: torch.device) -> Rotation:
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32, device=device)
    return Rotation(inv_freq, rope.scale, rope.interleaved)

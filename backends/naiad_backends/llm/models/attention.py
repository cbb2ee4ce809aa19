"""Attention over a paged KV cache in plain torch, for a CPU.

Pages are gathered whole. Sequences with one new token are computed together, in groups of similar
length; those with more, one by one. Query heads of one KV head are rows of one product.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from naiad_backends.llm.engine.runner import Step
from naiad_backends.llm.models.operators import AttentionLayer

LEAST_GROUP = 4
"""Sequences are not computed apart for the sake of shorter padding if there are not more."""


@dataclass(slots=True)
class Group:
    """Sequences that are computed together; each has `tokens` new tokens.

    pages: [sequences * pages of one].  first, tokens: the new tokens' rows in the step.
    positions: [sequences, tokens, 1]: of the new tokens.  places: [1, 1, context].
    """

    first: int
    sequences: int
    tokens: int
    pages: Tensor
    positions: Tensor
    places: Tensor
    masks: dict[int, Tensor]

    def mask(self, window: int) -> Tensor:
        """[sequences, tokens, context]: 0 where a token sees, -inf where not."""
        if window not in self.masks:
            seen = self.places <= self.positions
            if window:
                seen = seen & (self.places > self.positions - window)
            mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
            self.masks[window] = mask
        return self.masks[window]


class PagedAttention:
    """The cache and what a step needs of it.

    keys, values: [layers][kv_heads * blocks, block_size * head_dim]: a row is a page of one head.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, blocks: int, block_size: int
    ) -> None:
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.blocks, self.block_size = blocks, block_size
        shape = (layers, kv_heads * blocks, block_size * head_dim)
        # NumPy leaves zeros to the kernel, so that pages take memory only when they are used.
        self.keys = torch.from_numpy(np.zeros(shape, np.float32))
        self.values = torch.from_numpy(np.zeros(shape, np.float32))
        self.slots = torch.empty(0)
        self.groups: list[Group] = []

    def begin(self, step: Step) -> None:
        """Tell of the step that is computed next."""
        heads = np.arange(self.kv_heads)[:, None]
        slots = heads * (self.blocks * self.block_size) + step.slots
        self.slots = torch.from_numpy(slots.reshape(-1))
        counts = np.diff(step.starts)
        single = int(np.searchsorted(counts > 1, True))
        self.groups = [self._group(step, *part) for part in self._parts(step.lengths[:single])]
        for row in range(single, len(counts)):
            self.groups.append(self._group(step, row, row + 1))

    def _parts(self, lengths: np.ndarray[tuple[int], np.dtype[np.int32]]) -> list[tuple[int, int]]:
        """Neighbours with one new token each, that are computed together."""
        return [(0, len(lengths))] if len(lengths) else []

    def _group(self, step: Step, first: int, end: int) -> Group:
        start, tokens = int(step.starts[first]), int(step.starts[first + 1] - step.starts[first])
        lengths = step.lengths[first:end]
        pages = -(-int(lengths.max()) // self.block_size)
        # One head's pages of all sequences, then the next head's.
        heads = np.arange(self.kv_heads, dtype=np.int64)[:, None, None] * self.blocks
        numbers = (heads + step.blocks[first:end, :pages]).reshape(-1)
        positions = step.positions[start : start + (end - first) * tokens]
        return Group(
            start,
            end - first,
            tokens,
            torch.from_numpy(numbers),
            torch.from_numpy(positions).view(end - first, tokens, 1),
            torch.arange(pages * self.block_size).view(1, 1, -1),
            {},
        )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: [T, kv_heads, head_dim] of the new tokens."""
        for cache, new in ((self.keys, keys), (self.values, values)):
            rows = new.transpose(0, 1).reshape(-1, self.head_dim)
            cache[layer].view(-1, self.head_dim).index_copy_(0, self.slots, rows.to(cache.dtype))

    def attend(self, queries: Tensor, layer: AttentionLayer) -> Tensor:
        """queries: [T, num_heads, head_dim]. The answer is like them."""
        out = [self._attend(queries, layer, group) for group in self.groups]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _attend(self, queries: Tensor, layer: AttentionLayer, group: Group) -> Tensor:
        n, tokens, kv_heads, width = group.sequences, group.tokens, self.kv_heads, self.head_dim
        share = layer.num_heads // kv_heads
        keys = self.keys[layer.index].index_select(0, group.pages).view(kv_heads * n, -1, width)
        values = self.values[layer.index].index_select(0, group.pages).view(kv_heads * n, -1, width)
        q = queries[group.first : group.first + n * tokens].view(n, tokens, kv_heads, share, width)
        # [kv_heads * n, share * tokens, width]: rows that see the same keys.
        q = q.permute(2, 0, 3, 1, 4).reshape(kv_heads * n, share * tokens, width)
        scores = torch.bmm(q, keys.to(q.dtype).transpose(1, 2))
        scores = scores.view(kv_heads, n, share, tokens, -1).mul_(layer.scale)
        if layer.softcap:
            scores = scores.div_(layer.softcap).tanh_().mul_(layer.softcap)
        scores = scores.add_(group.mask(layer.window)[None, :, None])
        weights = torch.softmax(scores, -1).view(kv_heads * n, share * tokens, -1)
        out = torch.bmm(weights, values.to(q.dtype)).view(kv_heads, n, share, tokens, width)
        return out.permute(1, 3, 0, 2, 4).reshape(n * tokens, layer.num_heads * width)

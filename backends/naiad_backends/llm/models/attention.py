"""Attention over a paged KV cache in plain torch, for a CPU.

Sequences with one new token read their keys and values where these lie: the scores are a product
that is computed only at the places that a sparse matrix names, and an embedding bag adds up the
values. Those with more tokens, one by one, gather their pages first.
"""

import warnings
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.engine.runner import Ints, Step
from naiad_backends.llm.models.operators import AttentionLayer


class Group(ABC):
    """Sequences that are computed together; how one of their tokens sees others.

    tokens: which of the step's.  positions: [sequences, tokens of one, 1].  places: of the context.
    """

    def __init__(self, tokens: slice, positions: Ints, context: int) -> None:
        self.tokens = tokens
        self.positions = torch.from_numpy(positions)
        self.places = torch.arange(context, dtype=torch.int32)
        self.masks: dict[int, Tensor | None] = {}

    def mask(self, window: int) -> Tensor | None:
        """[sequences, tokens of one, context]: 0 where a token sees, -inf where not; None if all
        see all."""
        if window not in self.masks:
            hidden = self.places > self.positions
            if window:
                hidden |= self.places <= self.positions - window
            zeros = torch.zeros(hidden.shape)
            self.masks[window] = zeros.masked_fill_(hidden, -torch.inf) if hidden.any() else None
        return self.masks[window]

    @abstractmethod
    def attend(self, queries: Tensor, cache: Tensor, layer: AttentionLayer) -> Tensor:
        """queries: [tokens, num_heads, head_dim].  cache: of this layer.  The answer is like
        them."""


class Singles(Group):
    """Sequences with one new token each.

    keys, values: rows of the cache, for each sequence, head and token of the context.
    """

    def __init__(self, step: Step, count: int, layout: "Layout", num_heads: int) -> None:
        lengths = step.lengths[:count]
        context = int(lengths.max())
        super().__init__(slice(0, count), step.positions[:count, None, None], context)
        slots = layout.slots(step.blocks[:count], context)
        share = num_heads // layout.kv_heads
        heads = np.arange(num_heads, dtype=np.int32)[:, None] // share * layout.tokens
        keys = torch.from_numpy((slots[:, None] + heads).reshape(-1))
        self.values = keys + layout.kv_heads * layout.tokens
        self.starts = torch.arange(0, len(keys) + 1, context, dtype=torch.int32)
        with warnings.catch_warnings():
            # Torch says that sparse matrices are young.
            warnings.simplefilter("ignore")
            self.scores = torch.sparse_csr_tensor(
                self.starts,
                keys,
                torch.zeros(len(keys)),
                (count * num_heads, layout.rows),
                check_invariants=False,
            )

    def attend(self, queries: Tensor, cache: Tensor, layer: AttentionLayer) -> Tensor:
        q = queries.reshape(-1, layer.head_dim)
        torch.sparse.sampled_addmm(
            self.scores, q, cache.t(), beta=0.0, alpha=layer.scale, out=self.scores
        )
        scores = self.scores.values().view(len(queries), layer.num_heads, -1)
        scores = _seen(scores, layer.softcap, self.mask(layer.window))
        out = functional.embedding_bag(
            self.values,
            cache,
            self.starts,
            mode="sum",
            per_sample_weights=torch.softmax(scores, -1).view(-1),
            include_last_offset=True,
        )
        return out.view(queries.shape)


class Several(Group):
    """One sequence with several new tokens. pages: of its keys and of its values, head by head."""

    def __init__(self, step: Step, row: int, layout: "Layout") -> None:
        tokens = slice(int(step.starts[row]), int(step.starts[row + 1]))
        self.length = int(step.lengths[row])
        super().__init__(tokens, step.positions[None, tokens, None], self.length)
        self.layout = layout
        pages = step.blocks[row, : -(-self.length // layout.block_size)]
        heads = np.arange(2 * layout.kv_heads, dtype=np.int32)[:, None] * layout.blocks
        self.pages = torch.from_numpy((heads + pages).reshape(-1))

    def attend(self, queries: Tensor, cache: Tensor, layer: AttentionLayer) -> Tensor:
        kv_heads, width = layer.num_kv_heads, layer.head_dim
        gathered = cache.view(-1, self.layout.block_size * width).index_select(0, self.pages)
        both = gathered.view(2, kv_heads, 1, -1, width)[..., : self.length, :]
        keys, values = both.expand(2, kv_heads, layer.num_heads // kv_heads, -1, width)
        q = queries.transpose(0, 1).reshape(kv_heads, -1, len(queries), width)
        mask = self.mask(layer.window)
        if layer.softcap:
            scores = torch.matmul(q, keys.transpose(2, 3)).mul_(layer.scale)
            out = torch.matmul(torch.softmax(_seen(scores, layer.softcap, mask), -1), values)
        else:
            out = functional.scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, scale=layer.scale
            )
        return out.view(layer.num_heads, -1, width).transpose(0, 1)


def _seen(scores: Tensor, softcap: float, mask: Tensor | None) -> Tensor:
    """May change them, but to nothing infinite: they may be multiplied by 0 in the next layer."""
    if softcap:
        scores.div_(softcap).tanh_().mul_(softcap)
    return scores if mask is None else scores + mask


class Layout:
    """Where things are in the cache of a layer, [rows, head_dim]: keys of the first head, slot by
    slot, then of the other heads, then values in the same way.

    tokens: slots of one head.
    """

    def __init__(self, kv_heads: int, head_dim: int, blocks: int, block_size: int) -> None:
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.blocks, self.block_size = blocks, block_size
        self.tokens = blocks * block_size
        self.rows = 2 * kv_heads * self.tokens

    def slots(self, blocks: Ints, context: int) -> Ints:
        """blocks: [sequences, W]. Of their tokens [sequences, context]."""
        places = np.arange(self.block_size, dtype=np.int32)
        slots = blocks[:, : -(-context // self.block_size), None] * self.block_size + places
        return slots.reshape(len(blocks), -1)[:, :context]


class PagedAttention:
    """The cache of all layers, and what the step that is computed does with it."""

    def __init__(self, layers: int, num_heads: int, layout: Layout) -> None:
        self.num_heads, self.layout = num_heads, layout
        # NumPy leaves zeros to the kernel, so that pages take memory only when they are used.
        zeros = np.zeros((layers, layout.rows, layout.head_dim), np.float32)
        self.cache = torch.from_numpy(zeros)
        self.slots = torch.empty(0)
        self.groups: list[Group] = []

    def begin(self, step: Step) -> None:
        """Tell of the step that is computed next."""
        layout = self.layout
        heads = np.arange(2 * layout.kv_heads) * layout.tokens
        self.slots = torch.from_numpy((step.slots[:, None] + heads).reshape(-1))
        counts = np.diff(step.starts)
        single = int(np.searchsorted(counts > 1, True))
        self.groups = [Several(step, row, layout) for row in range(single, len(counts))]
        if single:
            self.groups.append(Singles(step, single, layout, self.num_heads))

    def write(self, layer: int, new: Tensor) -> None:
        """new: [T, 2 * kv_heads, head_dim], keys and then values of the new tokens."""
        self.cache[layer].index_copy_(0, self.slots, new.reshape(-1, self.layout.head_dim))

    def attend(self, queries: Tensor, layer: AttentionLayer) -> Tensor:
        """queries: [T, num_heads, head_dim]. The answer is like them."""
        cache = self.cache[layer.index]
        if len(self.groups) == 1:
            return self.groups[0].attend(queries, cache, layer)
        out = torch.empty(queries.shape)
        for group in self.groups:
            out[group.tokens] = group.attend(queries[group.tokens], cache, layer)
        return out

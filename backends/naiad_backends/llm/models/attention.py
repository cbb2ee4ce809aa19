"""Attention over a paged KV cache in plain torch, for a CPU.

Sequences with one new token read their keys and values where these lie: the scores are a product
that is computed only at the places that a sparse matrix names, and an embedding bag adds up the
values. Those with more tokens, one by one, gather their pages first.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from naiad_backends.llm.checkpoint.architecture import Architecture
from naiad_backends.llm.engine.runner import Ints, Step
from naiad_backends.llm.models.operators import AttentionLayer


class Group(ABC):
    """Sequences that are computed together. tokens: which of the step's."""

    tokens: slice

    @abstractmethod
    def attend(self, queries: Tensor, cache: Tensor, layer: AttentionLayer) -> Tensor:
        """queries: [tokens, num_heads, head_dim]; cache: of this layer.  The answer is like
        them."""


class Singles(Group):
    """Sequences with one new token each. All but `tokens` is in tensors, for `TracedDecoder`.

    values: rows of the cache, for each sequence, head and token of the longest context.  starts: of
    each sequence and head in these, and the end.  scores: a sparse matrix with the rows of keys.
    masks: for each window of the model [sequences, 1, context].
    """

    def __init__(
        self, windows: Sequence[int], values: Tensor, starts: Tensor, scores: Tensor, *masks: Tensor
    ) -> None:
        self.tokens = slice(0, masks[0].shape[0])
        self.values, self.starts, self.scores = values, starts, scores
        self.masks = dict(zip(windows, masks, strict=True))

    @property
    def tensors(self) -> list[Tensor]:
        """What a group is made of again, beside the windows."""
        return [self.values, self.starts, self.scores, *self.masks.values()]

    def attend(self, queries: Tensor, cache: Tensor, layer: AttentionLayer) -> Tensor:
        q = queries.reshape(-1, layer.head_dim)
        torch.sparse.sampled_addmm(
            self.scores, q, cache.t(), beta=0.0, alpha=layer.scale, out=self.scores
        )
        scores = self.scores.values().view(queries.shape[0], layer.num_heads, -1)
        scores = _capped(scores, layer.softcap) + self.masks[layer.window]
        weights = torch.softmax(scores, -1).view(-1)
        # Values, rows, starts, scale_grad_by_freq, mode (a sum), sparse, weights, the end among the
        # starts: the function of `functional` compares shapes, which cannot be recorded.
        out = torch.embedding_bag(cache, self.values, self.starts, False, 0, False, weights, True)
        return out[0].view(queries.shape)


def singles(step: Step, count: int, layout: "Layout", windows: Sequence[int]) -> Singles:
    """The first sequences of a step."""
    lengths = step.lengths[:count]
    context, num_heads = int(lengths.max()), layout.num_heads
    slots = layout.slots(step.blocks[:count], context)
    heads = np.arange(num_heads, dtype=np.int32)[:, None] // layout.share * layout.tokens
    keys = torch.from_numpy((slots[:, None] + heads).reshape(-1))
    starts = torch.arange(0, len(keys) + 1, context, dtype=torch.int32)
    shape = count * num_heads, layout.rows
    with warnings.catch_warnings():
        # Torch says that sparse matrices are young.
        warnings.simplefilter("ignore")
        scores = torch.sparse_csr_tensor(
            starts, keys, torch.zeros(len(keys)), shape, check_invariants=False
        )
    positions = torch.from_numpy(step.positions[:count, None, None])
    masks = [_mask(positions, context, window) for window in windows]
    return Singles(windows, keys + layout.kv_heads * layout.tokens, starts, scores, *masks)


class Several(Group):
    """One sequence with several new tokens. pages: of its keys and of its values, head by head."""

    def __init__(self, step: Step, row: int, layout: "Layout") -> None:
        self.tokens = slice(int(step.starts[row]), int(step.starts[row + 1]))
        self.positions = torch.from_numpy(step.positions[self.tokens, None])
        self.length = int(step.lengths[row])
        self.layout = layout
        self.masks: dict[int, Tensor | None] = {}
        pages = step.blocks[row, : -(-self.length // layout.block_size)]
        heads = np.arange(2 * layout.kv_heads, dtype=np.int32)[:, None] * layout.blocks
        self.pages = torch.from_numpy((heads + pages).reshape(-1))

    def attend(self, queries: Tensor, cache: Tensor, layer: AttentionLayer) -> Tensor:
        kv_heads, width = layer.num_kv_heads, layer.head_dim
        gathered = cache.view(-1, self.layout.block_size * width).index_select(0, self.pages)
        both = gathered.view(2, kv_heads, 1, -1, width)[..., : self.length, :]
        keys, values = both.expand(2, kv_heads, self.layout.share, -1, width)
        q = queries.transpose(0, 1).reshape(kv_heads, -1, len(queries), width)
        mask = self.mask(layer.window)
        if layer.softcap:
            scores = torch.matmul(q, keys.transpose(2, 3)).mul_(layer.scale)
            scores = _capped(scores, layer.softcap)
            out = torch.matmul(torch.softmax(scores if mask is None else scores + mask, -1), values)
        else:
            out = functional.scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, scale=layer.scale
            )
        return out.view(layer.num_heads, -1, width).transpose(0, 1)

    def mask(self, window: int) -> Tensor | None:
        """[tokens, context]; None if all see all, for which torch is faster."""
        if window not in self.masks:
            mask = _mask(self.positions, self.length, window)
            self.masks[window] = mask if mask.any() else None
        return self.masks[window]


def _mask(positions: Tensor, context: int, window: int) -> Tensor:
    """positions: [..., 1], of tokens.  The answer [..., context]: 0 where a token sees, -inf where
    not."""
    places = torch.arange(context, dtype=torch.int32)
    hidden = places > positions
    if window:
        hidden |= places <= positions - window
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


def _capped(scores: Tensor, softcap: float) -> Tensor:
    """Changes them."""
    return scores.div_(softcap).tanh_().mul_(softcap) if softcap else scores


class Layout:
    """Where things are in the cache of a layer, [rows, head_dim]: keys of the first head, slot by
    slot, then of the other heads, then values in the same way.

    tokens: slots of one head.  share: heads of queries for one of keys.
    """

    def __init__(self, a: Architecture, blocks: int, block_size: int) -> None:
        num_heads, kv_heads = a.num_heads, a.num_kv_heads
        self.num_heads, self.kv_heads, self.head_dim = num_heads, kv_heads, a.head_dim
        self.share = num_heads // kv_heads
        self.blocks, self.block_size = blocks, block_size
        self.tokens = blocks * block_size
        self.rows = 2 * kv_heads * self.tokens

    def slots(self, blocks: Ints, context: int) -> Ints:
        """blocks: [sequences, W]. Of their tokens [sequences, context]."""
        places = np.arange(self.block_size, dtype=np.int32)
        slots = blocks[:, : -(-context // self.block_size), None] * self.block_size + places
        return slots.reshape(len(blocks), -1)[:, :context]


class PagedAttention:
    """The cache of all layers, and what the step that is computed does with it.

    blocks: pages, of `block_size` tokens each.
    """

    def __init__(self, a: Architecture, blocks: int, block_size: int) -> None:
        self.layout = layout = Layout(a, blocks, block_size)
        self.windows = sorted({layer.window for layer in a.layers})
        # NumPy leaves zeros to the kernel, so that pages take memory only when they are used.
        zeros = np.zeros((len(a.layers), layout.rows, layout.head_dim), np.float32)
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
            self.groups.append(singles(step, single, layout, self.windows))

    @property
    def tensors(self) -> list[Tensor]:
        """What the step depends on, if all of it is `Singles`."""
        [group] = self.groups
        assert isinstance(group, Singles)
        return [self.cache, self.slots, *group.tensors]

    @tensors.setter
    def tensors(self, tensors: Sequence[Tensor]) -> None:
        self.cache, self.slots, *group = tensors
        self.groups = [Singles(self.windows, *group)]

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

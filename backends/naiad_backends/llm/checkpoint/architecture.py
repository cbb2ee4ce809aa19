"""The shape of a model: the switches of one dense decoder, and of one encoder.

Whatever a family does differently is a value here; nothing else asks for a family's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

MOST_LAYERS = 4096
"""No model has more."""

Pooling = Literal["mean", "cls", "last"]
"""How the vectors of tokens become one."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embeddings of one kind of layer.

    dimensions: of a head that rotate, from its first on.  interleaved: pairs are neighbours, else
    halves.  inv_freq: [dimensions / 2], scaling included.  scale: of cosine and sine.
    long_inv_freq: instead, where sequences may be longer than `long_from` tokens; empty if it makes
        no difference. `Architecture.limited` has chosen before a runner sees it.
    """

    dimensions: int
    inv_freq: tuple[float, ...]
    scale: float = 1.0
    interleaved: bool = False
    long_inv_freq: tuple[float, ...] = ()
    long_from: int = 0

    def limited(self, length: int) -> "Rope":
        """For sequences of up to `length` tokens."""
        if not self.long_inv_freq:
            return self
        inv_freq = self.long_inv_freq if length > self.long_from else self.inv_freq
        return replace(self, inv_freq=inv_freq, long_inv_freq=())


@dataclass(frozen=True, slots=True)
class Layer:
    """What may differ from layer to layer. window: 0, or how many tokens back, itself included, it
    sees.  rope: its index in `Architecture.ropes`; None for no rotation."""

    window: int = 0
    rope: int | None = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """A dense decoder.

    norm_offset: added to each norm's weight (Gemma: 1).
    pre_norm, post_norm: norms before, and of the output of, attention and MLP.
    qk_norm: RMSNorm of each query and key head before the rotation.
    activation: of the gate.
    attention_scale: of the scores.  score_softcap, logit_softcap: c in c * tanh(x / c); 0 is none.
    embedding_scale, residual_scale, logit_scale: factors.
    tied: the output matrix is the embedding.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[Layer, ...]
    ropes: tuple[Rope, ...]
    max_position: int
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    attention_scale: float = 0.0
    score_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    tied: bool = True
    name: str = ""
    """The family, for people to read."""

    def limited(self, length: int) -> "Architecture":
        """The same for sequences of up to `length` tokens; 0 for as many as it can."""
        length = min(length, self.max_position) or self.max_position
        ropes = tuple(rope.limited(length) for rope in self.ropes)
        return replace(self, max_position=length, ropes=ropes)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A bidirectional encoder of BERT's kind that makes one vector of a text.

    position_offset: of the first position (RoBERTa: padding index + 1).
    pooling: mean over the tokens, the first one's, or the last one's.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    max_position: int
    position_offset: int = 0
    token_types: int = 2
    norm_eps: float = 1e-12
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    pooling: Pooling = "mean"
    normalize: bool = True
    dimensions: tuple[int, ...] = ()
    """Shorter vectors that it was trained for (Matryoshka)."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the author recommends: EOS tokens and sampling by vLLM's names."""

    eos: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
